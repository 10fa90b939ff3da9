"""An edit as data: file, stack, proof, export to a checkpoint. Knows `concept`."""
