"""Model repositories for NVIDIA Triton: what is written (`repository.py`), and what runs inside the server (`model.py`)."""
