"""One module per runtime, one class per way of running it."""
