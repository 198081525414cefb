"""How two tokenizers relate."""
