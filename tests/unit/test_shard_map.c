/* Shard map: where experts are found in every layout that GGUF files use, and which layouts are refused. Each
 * expert's bytes are read through its ranges and compared with the file. */
#include "gguf_fixture.h"

#include "storage/shard_map.h"

enum { F32 = 0, Q4_0 = 2, Q8_0 = 8, COLS = 64, ROWS = 96, N_EXPERTS = 5 };

/* A model under construction; data_bytes counts what its tensors hold. */
struct model {
    struct gguf_writer *writer;
    uint64_t data_bytes;
};

static struct model model_new(const char *name)
{
    return (struct model){writer_new(scratch_path(name)), 0};
}

static void add(struct model *model, const char *name, uint32_t type, uint64_t d0, uint64_t d1, uint64_t d2)
{
    const uint64_t dims[4] = {d0, d1, d2, 1};
    uint64_t bytes;
    assert_true(gguf_type_bytes(gguf_type_find(type), dims, &bytes));
    gguf_writer_add_tensor(model->writer, name, type, d2 > 1 ? 3 : d1 > 1 ? 2 : 1, dims);
    model->data_bytes += bytes;
}

static void add_stacked(struct model *model, const char *prefix, uint32_t type)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.ffn_gate_exps.weight", prefix);
    add(model, name, type, COLS, ROWS, N_EXPERTS);
    snprintf(name, sizeof(name), "%s.ffn_up_exps.weight", prefix);
    add(model, name, type, COLS, ROWS, N_EXPERTS);
    snprintf(name, sizeof(name), "%s.ffn_down_exps.weight", prefix);
    add(model, name, type, ROWS, COLS, N_EXPERTS);
}

static struct gguf *finish(struct model *model, const char *name)
{
    writer_complete(model->writer, model->data_bytes);
    return open_ok(scratch_path(name));
}

static struct shard_map *map_ok(const struct gguf *gguf, uint32_t n_layers)
{
    struct shard_map *map;
    struct ps_error err;
    if (shard_map_new(&map, gguf, n_layers, &err) != PS_OK)
        fail_msg("%s", err.message);
    return map;
}

static void map_fails(struct model *model, enum ps_status status, const char *text)
{
    struct gguf *gguf = finish(model, "bad.gguf");
    struct shard_map *map = (struct shard_map *)1;
    struct ps_error err = {0};
    enum ps_status got = shard_map_new(&map, gguf, 4, &err);
    if (got != status || !strstr(err.message, text))
        fail_msg("status %d, message \"%s\"; expected status %d, \"%s\"", got, err.message, status, text);
    assert_null(map);
    gguf_free(gguf);
}

/* What an io_reader does with ranges: whole aligned units, each range at its place. */
static void read_ranges(const struct gguf *gguf, const struct io_range *ranges, uint32_t n, uint8_t *buffer,
                        uint64_t buffer_bytes)
{
    uint64_t end = 0;
    for (uint32_t i = 0; i < n; i++) {
        const struct io_range *range = &ranges[i];
        size_t bytes;
        uint8_t *file = load_file(gguf_file_path(gguf, range->file), &bytes);
        uint64_t start = range->offset / IO_ALIGN * IO_ALIGN;
        uint64_t span = io_range_span(range->offset, range->length);
        assert_int_equal(range->at % IO_ALIGN, 0);
        assert_true(range->at >= end); /* ranges never share buffer */
        end = range->at + span;
        assert_true(end <= buffer_bytes && range->length > 0);
        assert_true(range->offset + range->length <= bytes);
        memcpy(buffer + range->at, file + start, start + span <= bytes ? span : bytes - start);
        free(file);
    }
}

/* The slice that an expert owns, computed from the tensor alone. */
static const uint8_t *expected_slice(const struct gguf *gguf, const char *name, const uint8_t *file,
                                     uint32_t expert, uint32_t n_experts, uint64_t *bytes)
{
    const struct gguf_tensor *tensor = gguf_tensor_find(gguf, name);
    assert_non_null(tensor);
    *bytes = tensor->bytes / n_experts;
    return file + tensor->offset + expert * *bytes;
}

static const char *const stacked_names[SHARD_N_PARTS] = {
    "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight", "ffn_gate_up_exps.weight",
    "ffn_gate_exps.bias",   "ffn_up_exps.bias",   "ffn_down_exps.bias",   "ffn_gate_up_exps.bias",
    "ffn_gate_exps.scale",  "ffn_up_exps.scale",  "ffn_down_exps.scale",  "ffn_gate_up_exps.scale",
};

/* Every part of every expert of a stacked layer lies in its slot as it does in the (single) file. */
static void check_stacked(const struct gguf *gguf, const struct shard_map *map, uint32_t layer,
                          uint32_t parts)
{
    const struct shard_layer *shape = shard_map_layer(map, layer);
    uint8_t *slot = malloc(shape->slot_bytes);
    size_t file_bytes;
    uint8_t *file = load_file(gguf_file_path(gguf, 0), &file_bytes);
    assert_non_null(slot);
    uint64_t worst = 0;
    for (uint32_t expert = 0; expert < shape->n_experts; expert++) {
        struct shard_location where;
        shard_map_locate(map, layer, expert, &where);
        memset(slot, 0xee, shape->slot_bytes);
        read_ranges(gguf, where.ranges, where.n_ranges, slot, shape->slot_bytes);
        uint64_t total = 0, used = 0, apart = 0;
        for (uint32_t i = 0; i < where.n_ranges; i++)
            used += io_range_span(where.ranges[i].offset, where.ranges[i].length);
        worst = used > worst ? used : worst;
        for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
            assert_int_equal(shape->slice[part].present, (parts >> part) & 1);
            if (!shape->slice[part].present) {
                assert_true(where.part_offset[part] == UINT64_MAX);
                continue;
            }
            char name[64];
            uint64_t bytes;
            snprintf(name, sizeof(name), "blk.%u.%s", layer, stacked_names[part]);
            const uint8_t *expected = expected_slice(gguf, name, file, expert, shape->n_experts, &bytes);
            assert_int_equal(bytes, shape->slice[part].bytes);
            assert_memory_equal(slot + where.part_offset[part], expected, bytes);
            total += bytes;
            apart += io_range_span((uint64_t)(expected - file), bytes);
        }
        assert_int_equal(total, shape->bytes);
        assert_true(used <= apart); /* merging never reads more */
    }
    assert_int_equal(worst, shape->slot_bytes); /* enough for the worst, and no more */
    free(file);
    free(slot);
}

enum { GATE_UP_DOWN = 1 << SHARD_GATE | 1 << SHARD_UP | 1 << SHARD_DOWN };

static void stacked_experts_are_located(void **state)
{
    (void)state;
    struct model model = model_new("m.gguf");
    add(&model, "token_embd.weight", F32, COLS, 7, 1);
    add(&model, "blk.0.ffn_gate.weight", Q4_0, COLS, ROWS, 1); /* a dense layer */
    add_stacked(&model, "blk.1", Q4_0);
    add(&model, "blk.1.ffn_gate_inp.weight", F32, COLS, N_EXPERTS, 1);
    add(&model, "blk.1.ffn_gate_shexp.weight", F32, COLS, ROWS, 1);
    add_stacked(&model, "blk.3", Q8_0);
    struct gguf *gguf = finish(&model, "m.gguf");
    struct shard_map *map = map_ok(gguf, 5);
    assert_int_equal(shard_map_n_layers(map), 5);
    assert_int_equal(shard_map_n_shards(map), 2 * N_EXPERTS);
    assert_int_equal(shard_map_layer(map, 0)->n_experts, 0);
    assert_int_equal(shard_map_layer(map, 1)->n_experts, N_EXPERTS);
    assert_int_equal(shard_map_layer(map, 1)->slice[SHARD_DOWN].cols, ROWS);
    assert_int_equal(shard_map_layer(map, 1)->slice[SHARD_DOWN].rows, COLS);
    assert_int_equal(shard_map_layer(map, 3)->slice[SHARD_UP].type, Q8_0);
    for (uint32_t shard = 0; shard < 2 * N_EXPERTS; shard++)
        assert_int_equal(shard_map_shard_layer(map, shard), shard < N_EXPERTS ? 1 : 3);
    check_stacked(gguf, map, 1, GATE_UP_DOWN);
    check_stacked(gguf, map, 3, GATE_UP_DOWN);
    for (uint32_t i = 0; i < gguf_n_tensors(gguf); i++)
        assert_int_equal(shard_map_owns_tensor(map, i),
                         strstr(gguf_tensor_at(gguf, i)->name, "_exps.") != NULL);
    shard_map_free(map);
    gguf_free(gguf);
}

static void layers_past_the_last_belong_to_the_trunk(void **state)
{
    (void)state;
    struct model model = model_new("m.gguf");
    add_stacked(&model, "blk.0", Q4_0);
    add_stacked(&model, "blk.1", Q4_0); /* a next-token-prediction layer that the caller leaves out */
    struct gguf *gguf = finish(&model, "m.gguf");
    struct shard_map *map = map_ok(gguf, 1);
    assert_int_equal(shard_map_n_shards(map), N_EXPERTS);
    assert_true(shard_map_owns_tensor(map, 0));
    assert_false(shard_map_owns_tensor(map, 3));
    shard_map_free(map);
    gguf_free(gguf);
}

static void fused_and_scaled_experts_are_located(void **state)
{
    (void)state;
    struct model model = model_new("m.gguf");
    add(&model, "blk.0.ffn_gate_up_exps.weight", Q4_0, COLS, 2 * ROWS, N_EXPERTS);
    add(&model, "blk.0.ffn_down_exps.weight", Q4_0, ROWS, COLS, N_EXPERTS);
    add(&model, "blk.0.ffn_down_exps.scale", F32, N_EXPERTS, 1, 1);
    add(&model, "blk.0.ffn_gate_inp.scale", F32, COLS, 1, 1);
    struct gguf *gguf = finish(&model, "m.gguf");
    struct shard_map *map = map_ok(gguf, 1);
    check_stacked(gguf, map, 0, 1 << SHARD_GATE_UP | 1 << SHARD_DOWN | 1 << SHARD_DOWN_SCALE);
    assert_false(shard_map_owns_tensor(map, 3));
    shard_map_free(map);
    gguf_free(gguf);
}

static void biased_experts_are_located(void **state)
{
    (void)state;
    struct model model = model_new("m.gguf");
    add_stacked(&model, "blk.0", Q4_0);
    add(&model, "blk.0.ffn_gate_exps.bias", F32, ROWS, N_EXPERTS, 1);
    add(&model, "blk.0.ffn_up_exps.bias", F32, ROWS, N_EXPERTS, 1);
    add(&model, "blk.0.ffn_down_exps.bias", F32, COLS, N_EXPERTS, 1);
    struct gguf *gguf = finish(&model, "m.gguf");
    struct shard_map *map = map_ok(gguf, 1);
    check_stacked(gguf, map, 0,
                  GATE_UP_DOWN | 1 << SHARD_GATE_BIAS | 1 << SHARD_UP_BIAS | 1 << SHARD_DOWN_BIAS);
    assert_int_equal(shard_map_layer(map, 0)->slice[SHARD_UP_BIAS].cols, ROWS);
    struct shard_location where; /* the three biases are neighbours: one range, not three */
    shard_map_locate(map, 0, 0, &where);
    assert_true(where.n_ranges <= 4);
    shard_map_free(map);
    gguf_free(gguf);
}

static void experts_without_a_gate_are_located(void **state)
{
    (void)state;
    struct model model = model_new("m.gguf");
    add(&model, "blk.0.ffn_up_exps.weight", Q4_0, COLS, ROWS, N_EXPERTS);
    add(&model, "blk.0.ffn_down_exps.weight", Q4_0, ROWS, COLS, N_EXPERTS);
    struct gguf *gguf = finish(&model, "m.gguf");
    struct shard_map *map = map_ok(gguf, 1);
    check_stacked(gguf, map, 0, 1 << SHARD_UP | 1 << SHARD_DOWN);
    shard_map_free(map);
    gguf_free(gguf);
}

/* Adds experts stored singly, in an order that is not that of their numbers; leaves one tensor out. */
static void add_singles(struct model *model, uint32_t layer, uint32_t without_expert)
{
    char name[64];
    for (uint32_t i = 0; i < N_EXPERTS; i++) {
        uint32_t expert = (i * 3 + 1) % N_EXPERTS;
        snprintf(name, sizeof(name), "blk.%u.ffn_up.%u.weight", layer, expert);
        if (expert != without_expert)
            add(model, name, Q4_0, COLS, ROWS, 1);
        snprintf(name, sizeof(name), "blk.%u.ffn_gate.%u.weight", layer, expert);
        add(model, name, Q4_0, COLS, ROWS, 1);
        snprintf(name, sizeof(name), "blk.%u.ffn_down.%u.weight", layer, expert);
        add(model, name, Q8_0, ROWS, COLS, 1);
    }
}

static void singly_stored_experts_are_located(void **state)
{
    (void)state;
    struct model model = model_new("m.gguf");
    add(&model, "token_embd.weight", F32, COLS, 7, 1);
    add_singles(&model, 0, UINT32_MAX);
    struct gguf *gguf = finish(&model, "m.gguf");
    struct shard_map *map = map_ok(gguf, 1);
    const struct shard_layer *shape = shard_map_layer(map, 0);
    assert_int_equal(shape->n_experts, N_EXPERTS);
    assert_int_equal(shape->slice[SHARD_DOWN].type, Q8_0);
    uint8_t *slot = malloc(shape->slot_bytes);
    size_t file_bytes;
    uint8_t *file = load_file(gguf_file_path(gguf, 0), &file_bytes);
    for (uint32_t expert = 0; expert < N_EXPERTS; expert++) {
        struct shard_location where;
        shard_map_locate(map, 0, expert, &where);
        assert_int_equal(where.n_ranges, 1); /* up, gate and down are neighbours */
        read_ranges(gguf, where.ranges, where.n_ranges, slot, shape->slot_bytes);
        static const char *const matrices[] = {"gate", "up", "down"};
        for (uint32_t part = 0; part < 3; part++) {
            char name[64];
            uint64_t bytes;
            snprintf(name, sizeof(name), "blk.0.ffn_%s.%u.weight", matrices[part], expert);
            const uint8_t *expected = expected_slice(gguf, name, file, 0, 1, &bytes);
            assert_memory_equal(slot + where.part_offset[part], expected, bytes);
        }
    }
    free(file);
    free(slot);
    shard_map_free(map);
    gguf_free(gguf);
}

static void a_model_without_experts_gives_an_empty_map(void **state)
{
    (void)state;
    struct model model = model_new("m.gguf");
    add(&model, "blk.0.ffn_up.weight", F32, COLS, ROWS, 1);
    struct gguf *gguf = finish(&model, "m.gguf");
    struct shard_map *map = map_ok(gguf, 1);
    assert_int_equal(shard_map_n_shards(map), 0);
    assert_false(shard_map_owns_tensor(map, 0));
    shard_map_free(map);
    struct ps_error err;
    assert_int_equal(shard_map_new(&map, gguf, UINT32_MAX, &err), PS_ERR_FORMAT);
    gguf_free(gguf);
}

static void missing_parts_are_named(void **state)
{
    (void)state;
    struct model model = model_new("bad.gguf");
    add(&model, "blk.2.ffn_gate_exps.weight", Q4_0, COLS, ROWS, N_EXPERTS);
    add(&model, "blk.2.ffn_up_exps.weight", Q4_0, COLS, ROWS, N_EXPERTS);
    map_fails(&model, PS_ERR_FORMAT, "blk.2.ffn_down_exps.weight: missing");

    model = model_new("bad.gguf");
    add(&model, "blk.2.ffn_gate_exps.weight", Q4_0, COLS, ROWS, N_EXPERTS);
    add(&model, "blk.2.ffn_down_exps.weight", Q4_0, ROWS, COLS, N_EXPERTS);
    map_fails(&model, PS_ERR_FORMAT, "blk.2.ffn_up_exps.weight: missing");

    model = model_new("bad.gguf");
    add(&model, "blk.0.ffn_up_exps.weight", Q4_0, COLS, ROWS, N_EXPERTS);
    add(&model, "blk.0.ffn_down_exps.weight", Q4_0, ROWS, COLS, N_EXPERTS);
    add(&model, "blk.0.ffn_gate_exps.bias", F32, ROWS, N_EXPERTS, 1);
    map_fails(&model, PS_ERR_FORMAT, "blk.0.ffn_gate_exps.weight: missing");

    model = model_new("bad.gguf");
    add_singles(&model, 1, 3);
    map_fails(&model, PS_ERR_FORMAT, "blk.1.ffn_up.3.weight: missing");

    model = model_new("bad.gguf");
    add(&model, "blk.1.ffn_up.40000.weight", Q4_0, COLS, ROWS, 1);
    add(&model, "blk.1.ffn_down.40000.weight", Q4_0, ROWS, COLS, 1);
    map_fails(&model, PS_ERR_FORMAT, "blk.1: experts are numbered up to 40000, but there are only 2");
}

static void parts_that_disagree_are_refused(void **state)
{
    (void)state;
    struct model model = model_new("bad.gguf");
    add(&model, "blk.0.ffn_up_exps.weight", Q4_0, COLS, ROWS, N_EXPERTS);
    add(&model, "blk.0.ffn_down_exps.weight", Q4_0, ROWS, COLS, N_EXPERTS + 1);
    map_fails(&model, PS_ERR_FORMAT, "experts, but other parts of the layer have");

    model = model_new("bad.gguf");
    add(&model, "blk.0.ffn_up_exps.weight", Q4_0, COLS, ROWS, N_EXPERTS);
    add(&model, "blk.0.ffn_down_exps.weight", Q4_0, COLS, COLS, N_EXPERTS);
    map_fails(&model, PS_ERR_FORMAT,
              "blk.0.ffn_down_exps.weight: 64 columns, but the layer's other parts ask for 96");

    model = model_new("bad.gguf");
    add_stacked(&model, "blk.0", Q4_0);
    add(&model, "blk.0.ffn_down_exps.bias", F32, ROWS, N_EXPERTS, 1);
    map_fails(&model, PS_ERR_FORMAT,
              "blk.0.ffn_down_exps.bias: 96 values, but the layer's other parts ask for 64");

    model = model_new("bad.gguf");
    add_stacked(&model, "blk.0", Q4_0);
    add(&model, "blk.0.ffn_down_exps.scale", Q8_0, 32, 1, 1);
    map_fails(&model, PS_ERR_FORMAT, "blk.0.ffn_down_exps.scale: 32 experts");

    model = model_new("bad.gguf");
    add_stacked(&model, "blk.0", Q4_0);
    add_singles(&model, 0, UINT32_MAX);
    map_fails(&model, PS_ERR_FORMAT, "beside experts that are stored singly");

    model = model_new("bad.gguf");
    add_stacked(&model, "blk.0", Q4_0);
    add(&model, "blk.0.ffn_gate_up_exps.weight", Q4_0, COLS, 2 * ROWS, N_EXPERTS);
    map_fails(&model, PS_ERR_FORMAT, "beside a separate gate or up");
}

static void trunk_layout_reads_neighbours_together(void **state)
{
    (void)state;
    struct model model = model_new("m.gguf");
    char name[64];
    for (uint32_t i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "norm.%u", i);
        add(&model, name, F32, 8 + i % 5, 1, 1);
    }
    add(&model, "blk.0.ffn_up_exps.weight", Q8_0, COLS, ROWS, N_EXPERTS);
    add(&model, "blk.0.ffn_down_exps.weight", Q8_0, ROWS, COLS, N_EXPERTS);
    add(&model, "output.weight", F32, COLS, 200, 1);
    struct gguf *gguf = finish(&model, "m.gguf");
    struct shard_map *map = map_ok(gguf, 1);
    uint32_t trunk[128], n = 0;
    for (uint32_t i = gguf_n_tensors(gguf); i-- > 0;) { /* any order */
        if (!shard_map_owns_tensor(map, i))
            trunk[n++] = i;
    }
    assert_int_equal(n, 101);
    struct tensor_layout layout;
    assert_int_equal(tensor_layout_init(&layout, gguf, trunk, n, NULL), PS_OK);
    assert_int_equal(layout.n_tensors, n);
    assert_int_equal(layout.n_ranges, 2);
    assert_true(layout.bytes < 200 * COLS * 4 + 6 * IO_ALIGN);
    uint8_t *buffer = calloc(1, layout.bytes);
    size_t bytes;
    uint8_t *file = load_file(gguf_file_path(gguf, 0), &bytes);
    read_ranges(gguf, layout.ranges, layout.n_ranges, buffer, layout.bytes);
    for (uint32_t i = 0; i < n; i++) {
        const struct gguf_tensor *tensor = gguf_tensor_at(gguf, trunk[i]);
        assert_memory_equal(buffer + layout.offset[i], file + tensor->offset, tensor->bytes);
    }
    free(file);
    free(buffer);
    tensor_layout_deinit(&layout);
    assert_int_equal(tensor_layout_init(&layout, gguf, trunk, 0, NULL), PS_OK);
    assert_int_equal(layout.bytes, 0);
    assert_int_equal(layout.n_ranges, 0);
    tensor_layout_deinit(&layout);
    shard_map_free(map);
    gguf_free(gguf);
}

/* The merged ranges of a split golden model hold the same bytes as those of the single file. */
static void golden_split_experts_equal_those_of_the_single_file(void **state)
{
    (void)state;
    if (access(TEST_SHARED_DIR "/golden/quant/qwen3moe-IQ1_S.gguf", R_OK) != 0) {
        print_message("no golden models in %s\n", TEST_SHARED_DIR);
        skip();
    }
    struct gguf *single = open_ok(TEST_SHARED_DIR "/golden/quant/qwen3moe-IQ1_S.gguf");
    struct gguf *parts = open_ok(TEST_SHARED_DIR "/golden/split/qwen3moe-IQ1_S-00001-of-00003.gguf");
    struct shard_map *single_map = map_ok(single, 1), *parts_map = map_ok(parts, 1);
    const struct shard_layer *x = shard_map_layer(single_map, 0), *y = shard_map_layer(parts_map, 0);
    assert_true(x->n_experts > 0 && x->n_experts == y->n_experts && x->bytes == y->bytes);
    uint8_t *slot_x = malloc(x->slot_bytes), *slot_y = malloc(y->slot_bytes);
    for (uint32_t expert = 0; expert < x->n_experts; expert++) {
        struct shard_location at_x, at_y;
        shard_map_locate(single_map, 0, expert, &at_x);
        shard_map_locate(parts_map, 0, expert, &at_y);
        read_ranges(single, at_x.ranges, at_x.n_ranges, slot_x, x->slot_bytes);
        read_ranges(parts, at_y.ranges, at_y.n_ranges, slot_y, y->slot_bytes);
        for (uint32_t part = 0; part < SHARD_N_PARTS; part++) {
            if (x->slice[part].present)
                assert_memory_equal(slot_x + at_x.part_offset[part], slot_y + at_y.part_offset[part],
                                    x->slice[part].bytes);
        }
    }
    free(slot_x);
    free(slot_y);
    shard_map_free(single_map);
    shard_map_free(parts_map);
    gguf_free(single);
    gguf_free(parts);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(stacked_experts_are_located),
        TEST(layers_past_the_last_belong_to_the_trunk),
        TEST(fused_and_scaled_experts_are_located),
        TEST(biased_experts_are_located),
        TEST(experts_without_a_gate_are_located),
        TEST(singly_stored_experts_are_located),
        TEST(a_model_without_experts_gives_an_empty_map),
        TEST(missing_parts_are_named),
        TEST(parts_that_disagree_are_refused),
        TEST(trunk_layout_reads_neighbours_together),
        TEST(golden_split_experts_equal_those_of_the_single_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
