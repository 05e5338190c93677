"""Typed decisions: forms whose words are pinned on the masked blocks and whose values are chosen among candidates."""
