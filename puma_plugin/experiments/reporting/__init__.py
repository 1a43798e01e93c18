"""What people see of runs: figures with intervals, tables, pictures, and the page that holds them."""
