"""Contains the HTTP server; `runtime.serve` is its command. `import runtime` imports nothing from here."""
