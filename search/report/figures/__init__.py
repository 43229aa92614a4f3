"""The figures of the report, one module each, and the data structure that they share (``figure``)."""
