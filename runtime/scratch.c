#include "runtime/scratch.h"

#include "runtime/stored_rows.h"

struct bump {
    uint8_t *base; /* NULL while measuring */
    uint64_t used; /* bytes */
};

/* Cache-line aligned, so that threads that write neighbouring arrays do not share lines. */
static void *take(struct bump *bump, uint64_t bytes)
{
    enum { LINE = 64 };
    uint64_t at = (bump->used + LINE - 1) / LINE * LINE;
    bump->used = at + bytes;
    return bump->base ? bump->base + at : NULL;
}

static float *take_floats(struct bump *bump, uint64_t n)
{
    return take(bump, n * sizeof(float));
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* Types of rounded activations that can occur, as a mask. */
static uint32_t rounded_types(const struct ps_model *model, const struct ps_model_params *params)
{
    return params->activations == PS_ACTIVATIONS_F32 ? 0 : model->act_mask & ~(1u << ACT_F32);
}

static uint64_t rounded_row(enum act_type type, uint64_t n)
{
    uint32_t block = act_block_values(type);
    return act_row_bytes(type, (n + block - 1) / block * block);
}

static uint64_t hidden_row(const struct weight *down, const struct ps_model_params *params)
{
    if (!down->format)
        return 0;
    return act_row_bytes(params->activations == PS_ACTIVATIONS_F32 ? ACT_F32 : down->format->act,
                         down->n_cols);
}

/* Bytes of the longest row of hidden values that a dense or shared FFN rounds for its down product; of experts. */
static uint64_t trunk_hidden_row(const struct ps_model *model, const struct ps_model_params *params)
{
    uint64_t bytes = 0;
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        bytes = max_u64(bytes, hidden_row(&model->layers[il].w[LT_FFN_DOWN], params));
        bytes = max_u64(bytes, hidden_row(&model->layers[il].w[LT_SHARED_DOWN], params));
    }
    return bytes;
}

static uint64_t expert_hidden_row(const struct ps_model *model, const struct ps_model_params *params)
{
    uint64_t bytes = 0;
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        if (model->layers[il].moe) {
            struct weight down = model_expert_weight(model, il, SHARD_DOWN);
            bytes = max_u64(bytes, hidden_row(&down, params));
        }
    }
    return bytes;
}

/* What a thread needs for the FFN tile of n_tokens tokens: hidden rows, and strips of gate and up. */
static uint64_t ffn_tile_floats(uint64_t n_tokens)
{
    return n_tokens * (FFN_TILE_ROWS + 2 * ffn_strip_rows(n_tokens));
}

/* Tiles and partial results of attention: the most that any layer's shape asks for. */
static void take_attention_work(struct scratch *s, struct bump *bump, const struct hparams *hp, uint64_t T,
                                uint32_t threads, uint32_t ctx)
{
    size_t floats = 0;
    size_t partials = 0;
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        const struct layer_hparams *l = &hp->layer[il];
        if (l->recurrent || l->n_kv_head == 0)
            continue;
        struct attention_args args = {.n_tokens = (uint32_t)T,
                                      .n_head = l->n_head,
                                      .n_kv_head = l->n_kv_head,
                                      .head_dim_k = l->head_dim_k,
                                      .head_dim_v = l->head_dim_v};
        floats = max_u64(floats, attention_scratch_floats(&args));
        partials = max_u64(partials, attention_partial_floats(&args, ctx));
    }
    s->attention_floats = floats;
    s->attention = take_floats(bump, threads * floats);
    s->attention_partials = take_floats(bump, partials);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t gathered_cells(const struct layer_hparams *l, uint32_t ctx)
{
    if (l->compressed) {
        uint32_t n_blocks = ctx / l->block;
        return min_u32(l->window, ctx) + (l->most_chosen ? min_u32(l->most_chosen, n_blocks) : n_blocks);
    }
    return min_u32(l->most_chosen, ctx);
}

/* The most that any layer's shape asks for, for one slot. */
static void size_gathering(struct scratch *s, const struct hparams *hp, enum kv_type kv, uint32_t ctx)
{
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        const struct layer_hparams *l = &hp->layer[il];
        uint64_t cells = gathered_cells(l, ctx);
        if (cells == 0)
            continue;
        uint64_t row = kv_row_bytes(kv, l->head_dim_k) + (l->v_in_k ? 0 : kv_row_bytes(kv, l->head_dim_v));
        struct attention_args args = {.n_tokens = 1,
                                      .n_head = l->n_head,
                                      .n_kv_head = l->n_kv_head,
                                      .head_dim_k = l->head_dim_k,
                                      .head_dim_v = l->head_dim_v};
        s->rows_bytes = max_u64(s->rows_bytes, l->n_kv_head * cells * row);
        s->rows_partial_floats = max_u64(s->rows_partial_floats, attention_partial_floats(&args, cells));
        uint64_t blocks = (l->index_by_cell ? l->n_kv_head : 1ull) * (ctx / l->block);
        s->chosen_block_ids = max_u64(s->chosen_block_ids, max_u64(blocks, cells));
        if (l->index_dim > 0)
            s->block_score_floats = max_u64(s->block_score_floats, blocks);
    }
}

static void take_gathering(struct scratch *s, struct bump *bump, const struct hparams *hp, enum kv_type kv,
                           uint64_t T, uint32_t threads, uint32_t ctx)
{
    enum { BYTES = 8 << 20 }; /* of all slots: enough tokens to keep threads busy */
    size_gathering(s, hp, kv, ctx);
    if (s->rows_bytes == 0)
        return;
    uint64_t slot = s->rows_bytes + s->block_score_floats * sizeof(*s->block_scores) +
                    s->chosen_block_ids * sizeof(*s->chosen_blocks);
    uint64_t slots = BYTES / slot > 0 ? BYTES / slot : 1;
    slots = slots < MAX_GATHER_SLOTS ? slots : MAX_GATHER_SLOTS;
    s->gather_slots = (uint32_t)(slots < T ? slots : T);
    s->slot_rows = take(bump, s->gather_slots * s->rows_bytes);
    s->rows_partials = take_floats(bump, s->gather_slots * s->rows_partial_floats);
    s->block_scores = take_floats(bump, s->gather_slots * s->block_score_floats);
    s->chosen_blocks = take(bump, s->gather_slots * s->chosen_block_ids * sizeof(*s->chosen_blocks));
    s->block_tiles = take_floats(bump, (uint64_t)threads * hp->index.n_head * BLOCK_TILE);
}

/* Nothing where the whole context fits into the choice. */
static void take_index(struct scratch *s, struct bump *bump, const struct hparams *hp, uint64_t T,
                       uint32_t threads, uint32_t ctx)
{
    const struct index_hparams *index = &hp->index;
    if (index->top_k == 0 || ctx <= index->top_k)
        return;
    uint64_t tokens = T < INDEX_TOKENS ? T : INDEX_TOKENS;
    s->cells = take(bump, T * index->top_k * sizeof(*s->cells));
    s->index_scores = take_floats(bump, tokens * ctx);
    s->index_tile_floats = tokens * index->n_head * INDEX_CELLS;
    s->index_tiles = take_floats(bump, threads * s->index_tile_floats);
    s->gathered = take(bump, index->top_k * hparams_most(hp, dim_head_k) * sizeof(float));
}

static void take_attention(struct scratch *s, struct bump *bump, const struct ps_model *model, uint64_t T,
                           uint32_t threads, uint32_t ctx)
{
    const struct hparams *hp = &model->hp;
    s->q = take_floats(bump, T * hparams_most(hp, dim_q));
    s->k = take_floats(bump, T * hparams_most(hp, dim_k));
    s->v = take_floats(bump, T * hparams_most(hp, dim_v));
    s->attended = take_floats(bump, T * hparams_most(hp, dim_attn_out));
    s->gate = model->arch->gates_attention ? take_floats(bump, T * hparams_most(hp, dim_attn_out)) : NULL;
    s->mixer = take_floats(bump, T * hp->mixer_floats);
    for (uint32_t i = 0; i < hp->n_ropes; i++) {
        s->rope_cos[i] = take_floats(bump, T * hp->rope[i].n_rot / 2);
        s->rope_sin[i] = take_floats(bump, T * hp->rope[i].n_rot / 2);
    }
    s->positions = take(bump, T * sizeof(*s->positions));
    s->rows = take(bump, T * sizeof(*s->rows));
    take_attention_work(s, bump, hp, T, threads, ctx);
    take_index(s, bump, hp, T, threads, ctx);
}

static bool has_latent_experts(const struct ps_model *model)
{
    for (uint32_t il = 0; il < model->hp.n_layers; il++) {
        if (model->layers[il].w[LT_LATENT_DOWN].format)
            return true;
    }
    return false;
}

static void take_experts(struct scratch *s, struct bump *bump, const struct ps_model *model,
                         const struct ps_model_params *params, uint64_t T, uint32_t threads)
{
    const struct hparams *hp = &model->hp;
    uint32_t types = rounded_types(model, params);
    bool packs_f32 = params->activations == PS_ACTIVATIONS_F32 || (model->act_mask >> ACT_F32 & 1);
    uint64_t P = T * params->top_k;
    s->router = take_floats(bump, T * hp->n_expert);
    s->preference = take_floats(bump, T * hp->n_expert);
    s->chosen = take(bump, P * sizeof(*s->chosen));
    s->weights = take_floats(bump, P);
    s->shared_gate = take_floats(bump, T);
    s->expert_start = take(bump, (hp->n_expert + 1ull) * sizeof(*s->expert_start));
    s->expert_ids = take(bump, hp->n_expert * sizeof(*s->expert_ids));
    s->pair_token = take(bump, P * sizeof(*s->pair_token));
    s->pair_row = take(bump, P * sizeof(*s->pair_row));
    s->row_pair = take(bump, P * sizeof(*s->row_pair));
    s->lossy_flags = take(bump, hp->n_expert);
    s->weighed = take_floats(bump, (uint64_t)threads * hp->n_embd_expert);
    s->latent = has_latent_experts(model) ? take_floats(bump, T * hp->n_embd_expert) : NULL;
    for (int type = 0; type < ACT_N_TYPES; type++) {
        bool used = type == ACT_F32 ? packs_f32 : (types >> type & 1) != 0;
        s->packed[type] = used ? take(bump, P * rounded_row((enum act_type)type, hp->n_embd_expert)) : NULL;
    }
    s->expert_hidden = take(bump, P * expert_hidden_row(model, params));
    s->expert_out = take_floats(bump, P * hp->n_embd_expert);
}

uint64_t scratch_layout(struct scratch *s, uint8_t *base, const struct ps_model *model,
                        const struct ps_model_params *params, uint32_t chunk, uint32_t threads)
{
    const struct hparams *hp = &model->hp;
    struct bump bump = {.base = base};
    uint64_t T = chunk;
    uint32_t types = rounded_types(model, params);
    *s = (struct scratch){0};
    s->x = take_floats(&bump, T * hp->n_streams * hp->n_embd);
    s->normed = take_floats(&bump, T * hp->n_embd);
    s->branch = take_floats(&bump, T * hp->n_embd);
    s->hidden = take_floats(&bump, T * hp->n_embd);
    take_attention(s, &bump, model, T, threads, params->ctx);
    take_gathering(s, &bump, hp, (enum kv_type)params->kv, T, threads, params->ctx);
    uint64_t stored = stored_rows_buffer(&model->stored, params->verify);
    s->stored = stored > 0 ? take(&bump, stored) : NULL;
    uint64_t widest = max_u64(max_u64(hp->n_embd, model->widest_input), hp->widest_mixer_row);
    for (int type = 0; type < ACT_N_TYPES; type++)
        s->rounded[type] =
            types >> type & 1 ? take(&bump, T * rounded_row((enum act_type)type, widest)) : NULL;
    s->ff_hidden = take(&bump, T * trunk_hidden_row(model, params));
    s->tile_floats = max_u64(ffn_tile_floats(T), ffn_tile_floats(T < FFN_FEW_TOKENS ? T : FFN_FEW_TOKENS));
    s->tiles = take_floats(&bump, (uint64_t)threads * s->tile_floats);
    if (hp->n_expert > 0)
        take_experts(s, &bump, model, params, T, threads);
    return bump.used;
}
