"""How much of a piece the embedded nano codec keeps."""
