"""Tables, figures and the page of a run. Knows the tables that the rooms below wrote."""
