"""Pre-training methods: one file each."""
