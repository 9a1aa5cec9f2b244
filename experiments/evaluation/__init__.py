"""How arms are decoded side by side, and what is written of them. It knows no configuration."""
