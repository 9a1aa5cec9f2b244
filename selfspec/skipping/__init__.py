"""What a draft leaves out of the model and what stands there instead; it knows nothing of decoding."""
