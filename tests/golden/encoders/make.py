#!/usr/bin/env python3
"""Makes the checkpoints and outputs of this folder with transformers: make.py [NAME...]

Each folder holds a tiny model with random weights that fit in bfloat16, as save_pretrained writes
it, and golden.safetensors, computed in float32: prompt.I (ids), types.I (token types, where the
model has them), hidden.I (the last hidden states) or, of a model that classifies, logits.I.

Made with torch 2.15.0 and transformers 5.23.0. They are needed here alone: the tests read what is
in the folders.
SPDX-License-Identifier: Apache-2.0
"""
import json
import math
import os
import pathlib
import shutil
import sys

os.environ['HF_HUB_OFFLINE'] = '1'
import torch
import transformers as tf
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
VOCAB = 96
LENGTHS = (1, 17, 70, 300)  # the last one crosses chunks of attention

BERT = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=320)
ROBERTA = {**BERT, 'max_position_embeddings': 322, 'type_vocab_size': 1, 'pad_token_id': 1,
           'layer_norm_eps': 1e-5}
DISTIL = dict(vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=3, n_heads=4,
              max_position_embeddings=320)
DECODER = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
               head_dim=16, pad_token_id=0)

MODELS = {
    'bert': lambda: tf.BertModel(tf.BertConfig(**BERT)),
    'bert-mean': lambda: tf.BertModel(tf.BertConfig(**BERT)),
    'bert-score': lambda: tf.BertForSequenceClassification(
        tf.BertConfig(**BERT, num_labels=1)),
    'bert-labels': lambda: tf.BertForSequenceClassification(
        tf.BertConfig(**BERT, id2label={0: 'no', 1: 'maybe', 2: 'yes'},
                      label2id={'no': 0, 'maybe': 1, 'yes': 2})),
    'roberta': lambda: tf.RobertaModel(tf.RobertaConfig(**ROBERTA)),
    'xlmr-score': lambda: tf.XLMRobertaForSequenceClassification(
        tf.XLMRobertaConfig(**ROBERTA, num_labels=1)),
    'distilbert': lambda: tf.DistilBertModel(tf.DistilBertConfig(**DISTIL)),
    'qwen3-embed': lambda: tf.Qwen3Model(tf.Qwen3Config(**DECODER)),
    'mistral-embed': lambda: tf.MistralModel(tf.MistralConfig(**DECODER, sliding_window=40)),
    'llama-score': lambda: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(**DECODER, num_labels=1)),
}
# What sentence-transformers adds to a model's folder.
PREFIX = 'sentence_transformers.models.'
MEAN = {
    'modules.json': [
        {'idx': 0, 'name': '0', 'path': '', 'type': PREFIX + 'Transformer'},
        {'idx': 1, 'name': '1', 'path': '1_Pooling', 'type': PREFIX + 'Pooling'},
        {'idx': 2, 'name': '2', 'path': '2_Normalize', 'type': PREFIX + 'Normalize'}],
    '1_Pooling/config.json': {'word_embedding_dimension': 32, 'pooling_mode_cls_token': False,
                              'pooling_mode_mean_tokens': True, 'pooling_mode_max_tokens': False},
    'sentence_bert_config.json': {'max_seq_length': 256, 'do_lower_case': False},
}
# As Qwen3-Embedding and E5-Mistral have it.
LAST = {
    'modules.json': MEAN['modules.json'],
    '1_Pooling/config.json': {'word_embedding_dimension': 32, 'pooling_mode_cls_token': False,
                              'pooling_mode_mean_tokens': False, 'pooling_mode_lasttoken': True,
                              'include_prompt': True},
}
SENTENCE = {'bert-mean': MEAN, 'qwen3-embed': LAST, 'mistral-embed': LAST}
GENERATES = {'qwen3-embed': 'Qwen3ForCausalLM'}  # what its config.json says nonetheless


def randomize(model, seed):
    """Every parameter large enough to matter; rounded to bfloat16."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if p.dim() == 1 and name.endswith('weight'):
                r = 0.3 * r + 1
            elif p.dim() == 1:
                r = 0.3 * r
            elif 'embed' in name:
                r = 0.7 * r
            else:
                r = r * (1.2 / math.sqrt(p.shape[-1]))
            p.copy_(r.to(torch.bfloat16).float())


def run(model, ids, types):
    more = {'token_type_ids': torch.tensor([types])} if types else {}
    with torch.no_grad():
        out = model(torch.tensor([ids]), **more)
    return out.logits[0] if hasattr(out, 'logits') else out.last_hidden_state[0]


def make(name):
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    torch.manual_seed(0)
    model = MODELS[name]().float().eval()
    model.config._attn_implementation = 'eager'
    seed = sum(map(ord, name))
    randomize(model, seed)
    golden_of = run_all(model, seed)
    model.to(torch.bfloat16).save_pretrained(out)
    config = json.loads((out / 'config.json').read_text())
    config.pop('_name_or_path', None)
    if name in GENERATES:
        config['architectures'] = [GENERATES[name]]
    (out / 'config.json').write_text(json.dumps(config, indent=1) + '\n')
    for path, content in SENTENCE.get(name, {}).items():
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_text(json.dumps(content, indent=1) + '\n')
    save_file(golden_of, out / 'golden.safetensors')
    for f in out.rglob('*'):
        if f.is_file():
            f.chmod(0o644)
    size = sum(f.stat().st_size for f in out.rglob('*') if f.is_file())
    print(f'{name}: {size >> 10} KiB, {type(model).__name__}')


def run_all(model, seed):
    g = torch.Generator().manual_seed(seed + 1)
    golden = {}
    for i, n in enumerate(LENGTHS):
        ids = torch.randint(3, VOCAB, (n,), generator=g).tolist()
        types = None
        if getattr(model.config, 'type_vocab_size', 0) == 2:
            types = [int(p >= (n + 1) // 2) for p in range(n)]
            golden[f'types.{i}'] = torch.tensor(types, dtype=torch.int32)
        golden[f'prompt.{i}'] = torch.tensor(ids, dtype=torch.int32)
        values = run(model, ids, types).float().contiguous()
        classifies = 'ForSequence' in type(model).__name__
        golden[f'logits.{i}' if classifies else f'hidden.{i}'] = values
    return golden


for name in sys.argv[1:] or MODELS:
    make(name)
