"""From a trajectory store to labelled results: selection, operators, results, summary."""
