"""What the teacher says of the distillation set."""
