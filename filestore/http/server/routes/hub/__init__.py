"""The API of the Hugging Face Hub, as its clients use it: `docs/hub.md`."""
