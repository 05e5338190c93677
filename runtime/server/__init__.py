"""The HTTP server's parts; `runtime.serve` is its command. Nothing of it loads with `import runtime`."""
