"""The command line: thin files that parse, call the library and print. Nothing here is needed from Python."""
