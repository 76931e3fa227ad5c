#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write pebble.json: transformers' beam search on models/pebble, in float32 on the CPU.

    pip install torch transformers        # 2.15 and 5.23 made what is kept here
    python3 tests/golden/beam/make.py models/pebble tests/golden/pebble/beam.json \
        > tests/golden/beam/pebble.json

The prompts are those of the second file. For every prompt, number of beams, length penalty and
early stopping: the sequences, best first, cut after a stop token, and their scores. A prompt's
sequences stand once, in a list that its cases point into.
"""
import json
import sys

import torch
import transformers

BEAMS, PENALTIES, EARLY, NEW_TOKENS = (2, 4, 8), (0.0, 1.0, 2.0), (False, True, "never"), 20


def cut(ids, stops):
    for i, token in enumerate(ids):
        if token in stops:
            return ids[: i + 1]
    return ids


def main():
    model = transformers.AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.float32, attn_implementation="eager")
    model.eval()
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    prompts = []
    for golden in json.load(open(sys.argv[2])):
        ids = torch.tensor([golden["prompt_ids"]])
        seen, cases = [], []
        for beams in BEAMS:
            for penalty in PENALTIES:
                for early in EARLY:
                    out = model.generate(
                        ids, attention_mask=torch.ones_like(ids), num_beams=beams,
                        num_return_sequences=beams, max_new_tokens=NEW_TOKENS, do_sample=False,
                        length_penalty=penalty, early_stopping=early, pad_token_id=stops[0],
                        return_dict_in_generate=True, output_scores=True)
                    picked = []
                    for row in out.sequences[:, ids.shape[1]:].tolist():
                        row = cut(row, stops)
                        if row not in seen:
                            seen.append(row)
                        picked.append(seen.index(row))
                    cases.append({"beams": beams, "length_penalty": penalty,
                                  "early_stopping": early, "sequences": picked,
                                  "scores": [round(s, 5) for s in out.sequences_scores.tolist()]})
        prompts.append({"id": golden["id"], "prompt_ids": golden["prompt_ids"],
                        "sequences": seen, "cases": cases})
        print(golden["id"], len(seen), file=sys.stderr, flush=True)
    dump = lambda o: json.dumps(o, separators=(",", ":"))
    print('{"torch":%s,"transformers":%s,"max_new_tokens":%d,"prompts":[' % (
        dump(torch.__version__.split("+")[0]), dump(transformers.__version__), NEW_TOKENS))
    print(",\n".join(dump(p) for p in prompts))
    print("]}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
