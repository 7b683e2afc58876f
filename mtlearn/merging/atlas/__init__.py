"""aTLAS: task vectors combined with one learned coefficient per parameter block."""
