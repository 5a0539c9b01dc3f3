"""Music2Latent's network in torch, under the official checkpoint's keys, written from SPEC sections 4 to 7."""
