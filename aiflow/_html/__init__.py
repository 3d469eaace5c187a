"""What a notebook shows of reports, slices, ports and sides: HTML, written when a cell asks for it."""
