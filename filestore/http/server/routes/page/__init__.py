"""The pages that a browser shows: what is stored, uploads, and what an operator looks at. `docs/pages.md` describes them."""
