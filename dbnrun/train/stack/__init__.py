"""Several networks of one shape that train as one program."""
