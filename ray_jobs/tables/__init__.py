"""The catalogue of tables: one module a stage, one `Table` contract a table. Assets and jobs share them."""
