"""The proof repeated without PyTorch: an engine replays what its bundle's reference recorded, and is judged by it."""
