from space import library_logging as library_logging
