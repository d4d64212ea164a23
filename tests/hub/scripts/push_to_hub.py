"""Load a configuration and a tokenizer from a folder, and push them by transformers. Usage: push_to_hub.py FOLDER NAME."""

import json
import sys

import transformers

if __name__ == "__main__":
    folder, name = sys.argv[1:]
    for kind in (transformers.AutoConfig, transformers.AutoTokenizer):
        kind.from_pretrained(folder).push_to_hub(name)
    print(json.dumps(None))
