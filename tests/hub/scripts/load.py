"""Load a model by transformers from names or folders, and print what each yields. Usage: load.py [--weights] SOURCE...

Runs in an environment with transformers; with --weights, it needs torch too.
"""

import json
import sys
from collections.abc import Mapping

import transformers

SENTENCE = "A repository is a line of commits, and each commit is a tree."


def loaded(source: str, *, weights: bool) -> Mapping[str, object]:
    """Return the configuration, the tokens of a sentence and, with weights, the numbers that the model makes of it."""
    config = transformers.AutoConfig.from_pretrained(source)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    result: dict[str, object] = {"layers": config.num_hidden_layers, "tokens": tokenizer(SENTENCE)["input_ids"]}
    if weights:
        model = transformers.AutoModel.from_pretrained(source)
        result["numbers"] = model(**tokenizer(SENTENCE, return_tensors="pt")).last_hidden_state[0, 0, :8].tolist()
    return result


if __name__ == "__main__":
    print(json.dumps([loaded(source, weights="--weights" in sys.argv) for source in sys.argv[1:] if source != "--weights"]))
