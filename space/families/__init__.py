"""What neither shapes nor behaviour can tell of a model type: a few lines for the few that need them."""
