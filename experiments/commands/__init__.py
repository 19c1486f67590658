"""The commands of the command line, each imported by cli.py when it is called: parse, call, print."""
