"""What the decoder would do with a draft, worked out from reference texts without decoding again."""
