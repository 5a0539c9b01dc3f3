"""Music2Latent: consistency autoencoder, 44.1 kHz (arXiv:2408.06500)."""
