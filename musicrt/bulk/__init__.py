"""Work on many files, and a service for requests, on Ray (the extra `ray`): on one machine, or unchanged on a cluster."""
