"""Judge a frozen encoder."""
