#!/usr/bin/env python3
"""Makes the checkpoints and outputs of this folder with transformers: make.py [NAME...]

Each folder holds a tiny model with random weights (config.json and model.safetensors, as
save_pretrained writes them; the values fit in bfloat16) and golden.safetensors, computed in float32
on those weights: prompt.I (ids), logits.I (after each position), greedy.I (tokens chosen next, one
after the other) and gap.I (between the best two logits of each of those steps). Mixtures of experts
have experts.I beside them, the experts of each layer at each position of prompt and greedy tokens,
and router_gap.I, between the last expert chosen and the next best: the difference of their router
logits as a share of the largest.

Made with torch 2.15.0 and transformers 5.23.0. They are needed here alone: the tests read what is
in the folders.
SPDX-License-Identifier: Apache-2.0
"""
import collections
import copy
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
from transformers.models.falcon import modeling_falcon as falcon

HERE = pathlib.Path(__file__).parent
VOCAB = 96
LENGTHS = (3, 17, 70)  # the last one crosses blocks of 16 and windows of 20
# Longer than their original context.
OTHER_LENGTHS = dict.fromkeys(('phi3-long', 'phi3-long-v4', 'phi3-partial'), (17, 40, 70))
N_GREEDY = 12

BASE = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            bos_token_id=1, eos_token_id=2, pad_token_id=None)
LLAMA3 = dict(rope_type='llama3', rope_theta=10000.0, factor=4.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=32)


def base(**more):
    return {**BASE, **more}


def rope(kind='default', theta=10000.0, **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


MODELS = {
    'llama': lambda: tf.LlamaConfig(**base(attention_bias=True, mlp_bias=True)),
    'llama-rope3': lambda: tf.LlamaConfig(**base(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    'llama-linear-v4': lambda: tf.LlamaConfig(**base(rope_parameters=rope('linear', factor=2.0))),
    'llama-yarn': lambda: tf.LlamaConfig(**base(rope_parameters=rope(
        'yarn', factor=4.0, original_max_position_embeddings=32))),
    'llama-head-dim': lambda: tf.LlamaConfig(**base(head_dim=24, num_key_value_heads=1)),
    'llama-rope3-v4': lambda: MODELS['llama-rope3'](),
    'llama-yarn-v4': lambda: MODELS['llama-yarn'](),
    'llama-dynamic': lambda: tf.LlamaConfig(**base(rope_parameters=rope('dynamic', factor=2.0))),
    'mistral-window': lambda: tf.MistralConfig(**base(sliding_window=20, head_dim=16)),
    'qwen2': lambda: tf.Qwen2Config(**base(use_sliding_window=True, sliding_window=20,
                                           max_window_layers=1)),
    'qwen2-v4': lambda: MODELS['qwen2'](),
    'qwen3-window': lambda: tf.Qwen3Config(**base(
        head_dim=16, use_sliding_window=True, sliding_window=20, max_window_layers=2)),
    'qwen3': lambda: tf.Qwen3Config(**base(head_dim=16, tie_word_embeddings=True)),
    'qwen3-bias': lambda: tf.Qwen3Config(**base(head_dim=8, attention_bias=True)),
    'gemma': lambda: tf.GemmaConfig(**base(head_dim=16, num_key_value_heads=1)),
    'gemma2': lambda: tf.Gemma2Config(**base(
        head_dim=16, sliding_window=20, query_pre_attn_scalar=24, num_hidden_layers=4,
        attn_logit_softcapping=3.0, final_logit_softcapping=5.0)),
    'gemma2-v4': lambda: MODELS['gemma2'](),
    'gemma3-v4': lambda: tf.Gemma3TextConfig(**base(
        head_dim=16, sliding_window=20, query_pre_attn_scalar=24, num_hidden_layers=4,
        layer_types=['sliding_attention', 'full_attention'] * 2,
        rope_parameters={'full_attention': rope('linear', 100000.0, factor=8.0),
                         'sliding_attention': rope('default', 10000.0)})),
    'gemma3': lambda: tf.Gemma3TextConfig(**base(
        head_dim=16, sliding_window=20, query_pre_attn_scalar=24, num_hidden_layers=4,
        layer_types=['sliding_attention', 'sliding_attention', 'full_attention',
                     'sliding_attention'],
        rope_parameters={'full_attention': rope('linear', 100000.0, factor=8.0),
                         'sliding_attention': rope('default', 10000.0)})),
    'phi3': lambda: tf.Phi3Config(**base(partial_rotary_factor=1.0)),
    'phi3-window': lambda: tf.Phi3Config(**base(sliding_window=20, partial_rotary_factor=1.0)),
    'phi3-partial': lambda: tf.Phi3Config(**base(
        original_max_position_embeddings=16, tie_word_embeddings=True, hidden_size=64,
        rope_parameters=rope('longrope', short_factor=[1.0] * 4,
                             long_factor=[1.0, 1.5, 2.5, 4.0],
                             original_max_position_embeddings=16, partial_rotary_factor=0.5))),
    'phi3-long-v4': lambda: MODELS['phi3-long'](),
    'phi3-long': lambda: tf.Phi3Config(**base(
        original_max_position_embeddings=16,
        rope_parameters=rope('longrope', short_factor=[1.0] * 4,
                             long_factor=[1.0, 1.5, 2.5, 4.0],
                             original_max_position_embeddings=16, partial_rotary_factor=1.0))),
    'phi3-short': lambda: tf.Phi3Config(**base(
        original_max_position_embeddings=128,
        rope_parameters=rope('longrope', short_factor=[1.0, 1.1, 1.25, 1.5],
                             long_factor=[1.0, 1.5, 2.5, 4.0],
                             original_max_position_embeddings=128, partial_rotary_factor=1.0))),
    'gpt2': lambda: tf.GPT2Config(vocab_size=VOCAB, n_positions=128, n_embd=32, n_layer=3, n_head=4,
                                  bos_token_id=1, eos_token_id=2),
    'opt': lambda: tf.OPTConfig(vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=3,
                                num_attention_heads=4, max_position_embeddings=128,
                                word_embed_proj_dim=32, bos_token_id=1, eos_token_id=2,
                                pad_token_id=None),
    'opt-bin': lambda: MODELS['opt'](),
    'opt-350m': lambda: tf.OPTConfig(vocab_size=VOCAB, hidden_size=32, ffn_dim=48,
                                     num_hidden_layers=3, num_attention_heads=4,
                                     max_position_embeddings=128, word_embed_proj_dim=24,
                                     do_layer_norm_before=False, bos_token_id=1, eos_token_id=2,
                                     pad_token_id=None),
    'opt-plain': lambda: tf.OPTConfig(vocab_size=VOCAB, hidden_size=32, ffn_dim=48,
                                      num_hidden_layers=2, num_attention_heads=4,
                                      max_position_embeddings=128, word_embed_proj_dim=40,
                                      enable_bias=False, _remove_final_layer_norm=True,
                                      activation_function='gelu', tie_word_embeddings=False,
                                      bos_token_id=1, eos_token_id=2, pad_token_id=None),
    'neox': lambda: tf.GPTNeoXConfig(**base(rotary_pct=0.5, hidden_size=64, num_key_value_heads=4)),
    'neox-v4': lambda: MODELS['neox'](),
    'neox-serial': lambda: tf.GPTNeoXConfig(**base(
        rotary_pct=1.0, use_parallel_residual=False, num_key_value_heads=4)),
    'falcon-7b': lambda: tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        multi_query=True, parallel_attn=True, bias=False, alibi=False,
        new_decoder_architecture=False, bos_token_id=1, eos_token_id=2),
    'falcon-40b': lambda: tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=3, num_attention_heads=8,
        num_kv_heads=2, bias=False, alibi=False, new_decoder_architecture=True, bos_token_id=1,
        eos_token_id=2),
    'falcon-7b-old': lambda: MODELS['falcon-7b'](),
    'falcon-11b': lambda: tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=8,
        num_kv_heads=4, bias=False, alibi=False, new_decoder_architecture=True,
        num_ln_in_parallel_attn=1, ffn_hidden_size=96, bos_token_id=1, eos_token_id=2),
    'falcon-40b-old': lambda: MODELS['falcon-40b'](),
    'falcon-rw': lambda: tf.FalconConfig(
        vocab_size=VOCAB, hidden_size=48, num_hidden_layers=3, num_attention_heads=6,
        multi_query=False, parallel_attn=False, bias=True, alibi=True,
        new_decoder_architecture=False, bos_token_id=1, eos_token_id=2),
    'stablelm': lambda: tf.StableLmConfig(**base(partial_rotary_factor=0.5, hidden_size=64,
                                                 use_qkv_bias=True)),
    'stablelm-parallel': lambda: tf.StableLmConfig(**base(
        partial_rotary_factor=0.5, hidden_size=64, use_parallel_residual=True, qk_layernorm=True)),
    'stablelm-v4': lambda: MODELS['stablelm'](),
    'granite': lambda: tf.GraniteConfig(**base(
        embedding_multiplier=3.0, residual_multiplier=0.4, logits_scaling=2.5,
        attention_multiplier=0.2)),
    'olmo2': lambda: tf.Olmo2Config(**base()),
    'smollm3': lambda: tf.SmolLM3Config(**base(num_hidden_layers=4, no_rope_layers=[1, 0, 1, 1],
                                               layer_types=['full_attention'] * 4)),
    'smollm3-v4': lambda: MODELS['smollm3'](),
    'mixtral-window': lambda: tf.MixtralConfig(**base(
        num_hidden_layers=2, num_local_experts=3, num_experts_per_tok=1, sliding_window=20)),
    'mixtral': lambda: tf.MixtralConfig(**base(num_local_experts=4, num_experts_per_tok=2,
                                               sliding_window=None)),
    'qwen2-moe': lambda: tf.Qwen2MoeConfig(**base(
        moe_intermediate_size=24, shared_expert_intermediate_size=40, num_experts=6,
        num_experts_per_tok=3, norm_topk_prob=False, mlp_only_layers=[1])),
    'qwen3-moe': lambda: tf.Qwen3MoeConfig(**base(
        head_dim=16, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2,
        norm_topk_prob=True)),
    'qwen3-moe-mixed': lambda: tf.Qwen3MoeConfig(**base(
        num_hidden_layers=4, moe_intermediate_size=24, num_experts=5, num_experts_per_tok=2,
        norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[1])),
}


def randomize(model, seed):
    """Every parameter large enough to matter; rounded to bfloat16."""
    g = torch.Generator().manual_seed(seed)
    plus_one = 'Gemma' in type(model).__name__  # it adds 1 to the norm weights itself
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if p.dim() == 1 and name.endswith('weight'):
                r = 0.3 * r + (0 if plus_one else 1)
            elif p.dim() == 1:
                r = 0.3 * r
            elif 'embed' in name or name.endswith('wte.weight') or name.endswith('wpe.weight'):
                r = 0.7 * r
            else:
                fan_in = p.shape[0] if 'c_' in name else p.shape[-1]
                r = r * (1.2 / math.sqrt(fan_in))
            p.copy_(r.to(torch.bfloat16).float())
        model.tie_weights()


def rewrite_v4(path):
    """The same config as transformers 4 wrote it."""
    c = json.loads(path.read_text())
    r = c.pop('rope_parameters')
    if 'full_attention' in r:  # Gemma 3
        c['rope_local_base_freq'] = r['sliding_attention']['rope_theta']
        r = r['full_attention']
        c['sliding_window_pattern'] = 2
    names = {'gpt_neox': ('rotary_pct', 'rotary_emb_base')}.get(
        c['model_type'], ('partial_rotary_factor', 'rope_theta'))
    for new, old in zip(('partial_rotary_factor', 'rope_theta'), names):
        if new in r:
            c[old] = r.pop(new)
    kind = r.pop('rope_type')
    by = 'rope_type' if kind == 'llama3' else 'type'
    c['rope_scaling'] = None if kind == 'default' else {by: kind, **r}
    if kind == 'longrope':  # it stands beside
        c['rope_scaling'].pop('original_max_position_embeddings')
    for key in ('layer_types', '_sliding_window_pattern'):
        c.pop(key, None)
    c['torch_dtype'] = c.pop('dtype')
    c['transformers_version'] = '4.40.0'
    path.write_text(json.dumps(c, indent=2) + '\n')


def rewrite_old_falcon(path):
    """Falcon's config as its first checkpoints had it, with their code's class name."""
    c = json.loads(path.read_text())
    for new, old in (('num_hidden_layers', 'n_layer'), ('num_attention_heads', 'n_head'),
                     ('num_kv_heads', 'n_head_kv')):
        c[old] = c.pop(new)
    if not c['new_decoder_architecture']:
        c.pop('n_head_kv')
    for key in ('new_decoder_architecture', 'rope_parameters', 'ffn_hidden_size',
                'num_ln_in_parallel_attn', 'max_position_embeddings'):
        c.pop(key)
    c['torch_dtype'] = c.pop('dtype')
    if c['multi_query']:
        c['architectures'] = ['RWForCausalLM']
        c['auto_map'] = {'AutoModelForCausalLM': 'modelling_RW.RWForCausalLM'}
    path.write_text(json.dumps(c, indent=1) + '\n')


def as_torch_shards(out, model):
    """pytorch_model-0000I-of-00002.bin and their index in place of model.safetensors, as
    transformers 4 wrote them; the tied lm_head shares the embedding's storage."""
    (out / 'model.safetensors').unlink()
    state = model.state_dict()
    names = list(state)
    parts = [[n for n in names if 'embed' in n or 'lm_head' in n],
             [n for n in names if not ('embed' in n or 'lm_head' in n)]]
    where = {}
    for i, part in enumerate(parts, 1):
        file = f'pytorch_model-{i:05}-of-00002.bin'
        shard = collections.OrderedDict((n, state[n]) for n in part)
        shard._metadata = state._metadata
        torch.save(shard, out / file)
        where.update(dict.fromkeys(part, file))
    (out / 'pytorch_model.bin.index.json').write_text(json.dumps(
        {'metadata': {'total_size': sum(t.nbytes for t in state.values())},
         'weight_map': where}, indent=1) + '\n')


def alibi_in_float32(attention_mask, num_heads, dtype):
    """transformers rounds Falcon's ALiBi to bfloat16, whatever the model's dtype; nobody else does,
    and it is no part of the architecture."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]
    position = (attention_mask.cumsum(dim=-1) - 1) * attention_mask
    alibi = torch.tensor(slopes)[:, None] * position[:, None, :].float()
    return alibi.reshape(attention_mask.shape[0] * num_heads, 1, -1).to(dtype)


def tidy(path):
    c = json.loads(path.read_text())
    c.pop('_name_or_path', None)
    path.write_text(json.dumps(c, indent=1) + '\n')


def run(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


class Routers:
    """What each router said in the last pass, layer after layer."""

    def __init__(self, model):
        self.model, self.seen = model, []
        routers = [m for m in model.modules() if type(m).__name__.endswith('TopKRouter')]
        for router in routers:
            router.register_forward_hook(lambda _m, _in, out: self.seen.append((out[0], out[2])))
        self.n = len(routers)

    def choices(self, ids):
        """experts [layers, positions, top_k] and gaps [layers, positions]"""
        self.seen.clear()
        run(self.model, ids)
        assert len(self.seen) == self.n
        k = self.seen[0][1].shape[-1]
        best = torch.stack([logits.float().topk(k + 1).values for logits, _ in self.seen])
        size = max(float(logits.abs().max()) for logits, _ in self.seen)
        experts = torch.stack([chosen for _, chosen in self.seen]).to(torch.int32)
        return experts, (best[..., k - 1] - best[..., k]) / size


def make(name):
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    config = MODELS[name]()
    # Falcon's eager attention adds ALiBi twice (5.23.0); the default, sdpa, once.
    kind = 'sdpa' if name == 'falcon-rw' else 'eager'
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=kind).float().eval()
    seed = sum(map(ord, name))
    randomize(model, seed)
    model.config.architectures = [type(model).__name__]
    stored = tf.AutoModelForCausalLM.from_config(copy.deepcopy(config))
    stored.load_state_dict(model.state_dict())
    stored.to(torch.bfloat16).save_pretrained(out)
    if name.endswith('-bin'):
        as_torch_shards(out, stored)
    (out / 'generation_config.json').unlink(missing_ok=True)
    tidy(out / 'config.json')
    if name.endswith('-v4'):
        rewrite_v4(out / 'config.json')
    if name.startswith('falcon') and name.endswith('-old'):
        rewrite_old_falcon(out / 'config.json')
    g = torch.Generator().manual_seed(seed + 1)
    golden, routers = {}, Routers(model)
    for i, n in enumerate(OTHER_LENGTHS.get(name, LENGTHS)):
        ids = torch.randint(3, VOCAB, (n,), generator=g).tolist()
        golden[f'prompt.{i}'] = torch.tensor(ids, dtype=torch.int32)
        golden[f'logits.{i}'] = run(model, ids).contiguous()
        tokens, gaps = [], []
        for _ in range(N_GREEDY):
            top = run(model, ids)[-1].topk(2)
            gaps.append(float(top.values[0] - top.values[1]))
            tokens.append(int(top.indices[0]))
            ids.append(tokens[-1])
        golden[f'greedy.{i}'] = torch.tensor(tokens, dtype=torch.int32)
        golden[f'gap.{i}'] = torch.tensor(gaps, dtype=torch.float32)
        if routers.n:
            golden[f'experts.{i}'], golden[f'router_gap.{i}'] = routers.choices(ids)
    save_file(golden, out / 'golden.safetensors')
    size = sum(f.stat().st_size for f in out.iterdir())
    spread = float(golden['logits.2'].std())
    print(f'{name}: {size >> 10} KiB, {type(model).__name__}, logits std {spread:.2f}')


falcon.build_alibi_tensor = alibi_in_float32
for name in sys.argv[1:] or MODELS:
    make(name)
