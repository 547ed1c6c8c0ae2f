/* Routing traces: what is written is read back, three formats are told apart by content, and what is wrong with a file is
 * said with its line. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/route_replay.h"
#include "runtime/route_trace.h"
#include "thinned.h"

static char directory[64];
static char path[128]; /* the trace of a test */

static int make_directory(void **state)
{
    (void)state;
    snprintf(directory, sizeof(directory), "/tmp/penstock-trace-XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof(path), "%s/t.trace", directory);
    return 0;
}

static int remove_file(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

/* Fails when a test left a file behind. */
static int remove_directory(void **state)
{
    (void)state;
    return rmdir(directory);
}

static void write_bytes(const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static struct route_trace *read_file(const char *name)
{
    struct route_trace *trace;
    struct ps_error err;
    if (route_trace_read(&trace, name, &err) != PS_OK)
        fail_msg("%s", err.message);
    return trace;
}

static struct route_trace *read_text(const char *text)
{
    write_bytes(text, strlen(text));
    return read_file(path);
}

static void assert_visit(const struct route_trace *t, uint64_t v, uint64_t token, uint32_t layer, uint32_t n,
                         const uint32_t *ids)
{
    const struct replay_visit *visit = &t->visits[v];
    assert_int_equal(visit->token, token);
    assert_int_equal(visit->layer, layer);
    assert_int_equal(visit->n, n);
    assert_memory_equal(t->ids + visit->first, ids, n * sizeof(*ids));
}

#define IDS(...)                                                                                             \
    (uint32_t[])                                                                                             \
    {                                                                                                        \
        __VA_ARGS__                                                                                          \
    }

/* ---- our own format ---- */

static const char own_text[] = "# penstock routing trace v1\n"
                               "# model=a model of words\n"
                               "# arch=x top_k=2\n"
                               "# layer=0 experts=4 expert_bytes=1000 pool=1\n"
                               "# layer=1 experts=8\n"
                               "# what comes later, key=value\n"
                               "token 0 17 prefill\n"
                               "experts 0 3:0.75 1:0.25\n"
                               "ahead 1 1 2 7:0.5 0:0.125\n"
                               "experts 1 7 2\n"
                               "token 1 - decode\n"
                               "experts 1 5:1\n";

static void own_format_is_read_as_it_is_documented(void **state)
{
    (void)state;
    struct route_trace *t = read_text(own_text);
    assert_string_equal(t->model, "a model of words");
    assert_int_equal(t->n_layers, 2);
    assert_int_equal(t->n_experts[0], 4);
    assert_int_equal(t->n_experts[1], 8);
    assert_int_equal(t->expert_bytes[0], 1000);
    assert_int_equal(t->expert_bytes[1], 0);
    assert_int_equal(t->pool[0], 1);
    assert_int_equal(t->pool[1], 0);
    assert_true(t->n_experts_known && t->ranked);
    assert_int_equal(t->top_k, 2);
    assert_int_equal(t->n_tokens, 2);
    assert_int_equal(t->tokens[0].id, 17);
    assert_false(t->tokens[0].decode);
    assert_int_equal(t->tokens[1].position, 1);
    assert_int_equal(t->tokens[1].id, -1);
    assert_true(t->tokens[1].decode);
    assert_int_equal(t->n_visits, 3);
    assert_visit(t, 0, 0, 0, 2, IDS(3, 1));
    assert_visit(t, 1, 0, 1, 2, IDS(7, 2));
    assert_visit(t, 2, 1, 1, 1, IDS(5));
    assert_true(t->weights[0] == 0.75f && t->weights[1] == 0.25f && isnan(t->weights[2]) &&
                t->weights[4] == 1.0f);
    assert_int_equal(t->n_predictions, 1);
    const struct route_prediction *p = &t->predictions[0];
    assert_true(p->token == 0 && p->n_tokens == 2 && p->layer == 1 && p->distance == 1 && p->n == 2);
    assert_memory_equal(t->predicted + p->first, IDS(7, 0), 2 * sizeof(uint32_t));
    assert_true(t->probabilities[0] == 0.5f && t->probabilities[1] == 0.125f);
    route_trace_free(t);
}

static void lines_may_end_as_on_windows(void **state)
{
    (void)state;
    char text[2 * sizeof(own_text)];
    size_t n = 0;
    for (const char *at = own_text; *at; at++) {
        if (*at == '\n')
            text[n++] = '\r';
        text[n++] = *at;
    }
    text[n] = 0;
    struct route_trace *t = read_text(text);
    assert_string_equal(t->model, "a model of words");
    assert_int_equal(t->n_ids, 5);
    route_trace_free(t);
}

enum { LAYERS = 3, TOP_K = 2 };

static const struct ps_expert_layer layers[LAYERS] = {{.n_experts = 8, .pool = 0, .bytes = 300},
                                                      {.n_experts = 8, .pool = 1, .bytes = 200},
                                                      {.n_experts = 8, .pool = 0, .bytes = 300}};

static struct route_trace_writer *new_writer(const char *model)
{
    const struct route_trace_header header = {model, "arch", LAYERS, TOP_K, layers};
    struct route_trace_writer *writer;
    struct ps_error err;
    if (route_trace_writer_new(&writer, path, &header, &err) != PS_OK)
        fail_msg("%s", err.message);
    return writer;
}

/* What token t of a run chooses. */
static uint32_t choice(uint32_t position, uint32_t layer, uint32_t rank)
{
    return (position * 3 + layer * 5 + rank * (1 + position % 4)) % 8;
}

static float weight(uint32_t position, uint32_t layer, uint32_t rank)
{
    return 1.0f / (float)(3 + position * 7 + layer * 11 + rank);
}

/* As a session calls the hooks: predictions first, then the layer's router, for all tokens of the chunk. */
static void feed_chunk(struct route_trace_writer *writer, uint32_t position, uint32_t n)
{
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint32_t ids[16 * TOP_K];
        float weights[16 * TOP_K];
        for (uint32_t i = 0; i < n * TOP_K; i++) {
            ids[i] = choice(position + i / TOP_K, l, i % TOP_K);
            weights[i] = weight(position + i / TOP_K, l, i % TOP_K);
        }
        for (uint32_t d = 1; d <= 2 && l + d < LAYERS; d++)
            route_trace_on_prediction(writer, l + d, d, position, n, 3, IDS(d, l + 3, 7),
                                      (float[]){0.9f, 0.5f, 0.001f});
        route_trace_on_router(writer, l, position, n, TOP_K, ids, weights);
    }
}

static void feed(struct route_trace_writer *writer, uint32_t position, const int32_t *tokens, uint32_t n,
                 bool decode)
{
    struct ps_error err;
    assert_int_equal(route_trace_writer_begin(writer, position, tokens, n, decode, &err), PS_OK);
    for (uint32_t i = 0; i < n; i += 3) /* in chunks of 3 */
        feed_chunk(writer, position + i, n - i < 3 ? n - i : 3);
}

static void what_is_written_is_read_back_token_by_token(void **state)
{
    (void)state;
    const int32_t tokens[] = {100, 101, 102, 103, 104, 105};
    struct ps_error err;
    struct route_trace_writer *writer = new_writer("name\nof two lines");
    feed(writer, 0, tokens, 5, false);
    feed(writer, 5, tokens + 5, 1, true);
    assert_int_equal(route_trace_writer_finish(writer, &err), PS_OK);
    route_trace_writer_free(writer);

    struct route_trace *t = read_file(path);
    assert_string_equal(t->model, "name?of two lines");
    assert_int_equal(t->n_layers, LAYERS);
    for (uint32_t l = 0; l < LAYERS; l++)
        assert_true(t->n_experts[l] == 8 && t->expert_bytes[l] == layers[l].bytes &&
                    t->pool[l] == layers[l].pool);
    assert_int_equal(t->n_tokens, 6);
    assert_int_equal(t->n_visits, 6 * LAYERS);
    for (uint32_t i = 0; i < 6; i++) {
        assert_int_equal(t->tokens[i].position, i);
        assert_int_equal(t->tokens[i].id, tokens[i]);
        assert_int_equal(t->tokens[i].decode, i == 5);
        for (uint32_t l = 0; l < LAYERS; l++) {
            assert_visit(t, i * LAYERS + l, i, l, TOP_K, IDS(choice(i, l, 0), choice(i, l, 1)));
            for (uint32_t r = 0; r < TOP_K; r++)
                assert_true(fabsf(t->weights[(i * LAYERS + l) * TOP_K + r] / weight(i, l, r) - 1.0f) < 1e-5f);
        }
    }
    /* Three chunks: of tokens 0-2, 3-4 and 5; each with one prediction of layer 1 and two of layer 2. */
    static const uint64_t chunk_first[] = {0, 3, 5};
    assert_int_equal(t->n_predictions, 9);
    for (uint32_t i = 0; i < 9; i++) {
        const struct route_prediction *p = &t->predictions[i];
        assert_int_equal(p->token, chunk_first[i / 3]);
        assert_int_equal(p->n_tokens, 3 - i / 3);
        assert_int_equal(p->layer, i % 3 == 0 ? 1 : 2);
        assert_int_equal(p->distance, i % 3 == 2 ? 2 : 1);
        assert_int_equal(p->n, 3);
        assert_memory_equal(t->predicted + p->first, IDS(p->distance, p->layer - p->distance + 3, 7), 12);
        assert_true(t->probabilities[p->first + 1] == 0.5f);
    }
    route_trace_free(t);
}

static void a_chunk_that_failed_leaves_nothing_behind(void **state)
{
    (void)state;
    struct ps_error err;
    struct route_trace_writer *writer = new_writer("m");
    const int32_t tokens[] = {7, 8};
    assert_int_equal(route_trace_writer_begin(writer, 0, tokens, 2, false, &err), PS_OK);
    route_trace_on_prediction(writer, 1, 1, 0, 2, 1, IDS(1), (float[]){1.0f});
    route_trace_on_router(writer, 0, 0, 2, TOP_K, IDS(1, 2, 3, 4), (float[]){1, 1, 1, 1});
    feed(writer, 0, tokens + 1, 1, true);
    assert_int_equal(route_trace_writer_finish(writer, &err), PS_OK);
    route_trace_writer_free(writer);
    struct route_trace *t = read_file(path);
    assert_int_equal(t->n_tokens, 1);
    assert_int_equal(t->tokens[0].id, 8);
    assert_int_equal(t->n_visits, LAYERS);
    assert_visit(t, 0, 0, 0, TOP_K, IDS(choice(0, 0, 0), choice(0, 0, 1)));
    assert_int_equal(t->n_predictions, 3);
    route_trace_free(t);
}

/* ---- writing where it cannot be ---- */

static void an_unfinished_trace_leaves_no_file_and_an_old_one_as_it_was(void **state)
{
    (void)state;
    write_bytes("old", 3);
    struct route_trace_writer *writer = new_writer("m");
    feed(writer, 0, (int32_t[]){1}, 1, true);
    route_trace_writer_free(writer);
    struct stat there;
    assert_int_equal(stat(path, &there), 0);
    assert_int_equal(there.st_size, 3);
    /* remove_directory fails should the temporary file be there. */
}

static void only_regular_files_are_replaced(void **state)
{
    (void)state;
    const struct route_trace_header header = {"m", "a", LAYERS, TOP_K, layers};
    struct route_trace_writer *writer;
    struct ps_error err;
    const char *const bad[] = {"/dev/null", directory, "/nowhere/at/all"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(route_trace_writer_new(&writer, bad[i], &header, &err), PS_ERR_IO);
        assert_null(writer);
        assert_non_null(strstr(err.message, bad[i]));
    }
}

/* In a child: files may not grow past 8 KiB. Returns the exit status. */
static int write_under_limit(void)
{
    const struct rlimit limit = {8192, 8192};
    struct ps_error err = {0};
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0)
        return 1;
    struct route_trace_writer *writer = new_writer("m");
    enum ps_status status = PS_OK;
    uint32_t n = 0;
    for (; n < 1000 && status == PS_OK; n++) {
        status = route_trace_writer_begin(writer, n, &(int32_t){0}, 1, true, &err);
        feed_chunk(writer, n, 1);
    }
    if (status != PS_ERR_IO || n > 900 || !strstr(err.message, "t.trace: cannot write: File too large"))
        return 2;
    if (route_trace_writer_finish(writer, &err) != PS_ERR_IO)
        return 3;
    route_trace_writer_free(writer);
    return access(path, F_OK) == 0 ? 4 : 0;
}

static void a_full_disk_is_reported_while_it_records(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(write_under_limit());
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- the formats of others ---- */

/* Layer by layer as in a prefill, columns in another order, one layer without experts, ranks not in order. */
static const char csv_text[] = "# route_trace v1\n"
                               "# model=/a/b.gguf arch=x n_layer=3 n_expert=16 n_expert_used=2\n"
                               "# layer=0 expert_bytes=0 dense_bytes=5\n"
                               "# layer=1 expert_bytes=70 dense_bytes=5\n"
                               "# layer=2 expert_bytes=90 dense_bytes=5\n"
                               "phase,turn,layer,step,slot,weight,expert,more\n"
                               "0,0,1,0,1,0.25,9,x\n"
                               "0,0,1,0,0,0.75,3,x\n"
                               "0,0,1,1,0,0.6,4,\n"
                               "0,0,1,1,1,0.4,5,\n"
                               "0,0,2,0,0,1,15,\n"
                               "1,1,1,0,0,1,2,\n";

static void csv_rows_are_put_in_the_order_of_tokens(void **state)
{
    (void)state;
    struct route_trace *t = read_text(csv_text);
    assert_string_equal(t->model, "b.gguf");
    assert_int_equal(t->n_layers, 2);
    assert_true(t->n_experts[0] == 16 && t->n_experts[1] == 16 && t->n_experts_known && t->ranked);
    assert_true(t->expert_bytes[0] == 70 && t->expert_bytes[1] == 90);
    assert_int_equal(t->n_tokens, 3);
    assert_false(t->tokens[1].decode);
    assert_true(t->tokens[2].decode);
    assert_int_equal(t->tokens[2].position, 0); /* of the next turn */
    assert_int_equal(t->n_visits, 4);
    assert_visit(t, 0, 0, 0, 2, IDS(3, 9));
    assert_visit(t, 1, 0, 1, 1, IDS(15));
    assert_visit(t, 2, 1, 0, 2, IDS(4, 5));
    assert_visit(t, 3, 2, 0, 1, IDS(2));
    assert_true(t->weights[0] == 0.75f && t->weights[1] == 0.25f);
    route_trace_free(t);
}

static const char json_text[] = "{\"tok\": 1, \"layers\": [[], [2, 5], [0, 3]], \"more\": \"x\"}\n"
                                "\n"
                                "{\"layers\": [[], [1, 2], [3, 9]], \"tok\": 2}";

static void json_lines_need_no_ranks_and_no_last_newline(void **state)
{
    (void)state;
    struct route_trace *t = read_text(json_text);
    assert_int_equal(t->n_layers, 2);
    assert_true(t->n_experts[0] == 10 && t->n_experts[1] == 10);
    assert_false(t->n_experts_known || t->ranked);
    assert_int_equal(t->expert_bytes[0], 0);
    assert_int_equal(t->n_tokens, 2);
    assert_int_equal(t->tokens[1].position, 2);
    assert_true(t->tokens[0].decode);
    assert_visit(t, 0, 0, 0, 2, IDS(2, 5));
    assert_visit(t, 3, 1, 1, 2, IDS(3, 9));
    assert_true(isnan(t->weights[0]));
    route_trace_free(t);
}

/* Hit rate of a cache that holds a share of the experts. */
static double hit_rate(const struct route_replay *replay, const char *policy, double share)
{
    struct replay_result result;
    struct ps_error err;
    uint32_t n_slots = (uint32_t)(share * route_replay_n_shards(replay));
    if (route_replay_run(replay, policy ? cache_policy_find(policy) : NULL, n_slots, 0, &result, &err) !=
        PS_OK)
        fail_msg("%s", err.message);
    return (double)result.hits / (double)result.accesses;
}

static void recordings_of_real_models_give_the_hit_rates_known_of_them(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        uint32_t n_layers, n_experts, top_k;
        uint64_t n_tokens, n_visits;
        double share[3], lru[3], belady[3];
    } known[] = {
        {"qwen3-30b-a3b.route.csv",
         48,
         128,
         6,
         156,
         7461,
         {0.03, 0.10, 0.35},
         {0.00, 0.49, 0.87},
         {0.45, 0.725, 0.91}},
        {"olmoe-299.jsonl",
         16,
         64,
         8,
         299,
         299 * 16,
         {0.10, 0.20, 0.50},
         {0.00, 0.48, 0.785},
         {0.54, 0.715, 0.91}},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        char file[512];
        snprintf(file, sizeof(file), "%s/traces/%s", TEST_SHARED_DIR, known[i].file);
        if (access(file, R_OK) != 0) {
            print_message("%s is absent\n", file);
            skip();
        }
        struct ps_error err;
        struct route_trace *t = read_file(file);
        struct route_replay *replay;
        assert_int_equal(t->n_layers, known[i].n_layers);
        assert_int_equal(t->n_experts[0], known[i].n_experts);
        assert_int_equal(t->top_k, known[i].top_k);
        assert_int_equal(t->n_tokens, known[i].n_tokens);
        assert_int_equal(t->n_visits, known[i].n_visits);
        assert_int_equal(route_replay_new(&replay, t, &err), PS_OK);
        for (int s = 0; s < 3; s++) {
            assert_true(fabs(hit_rate(replay, "lru", known[i].share[s]) - known[i].lru[s]) < 0.006);
            assert_true(fabs(hit_rate(replay, NULL, known[i].share[s]) - known[i].belady[s]) < 0.006);
        }
        route_replay_free(replay);
        route_trace_free(t);
    }
}

/* ---- what is refused ---- */

#define OWN    "# penstock routing trace v1\n"
#define LAYER0 "# layer=0 experts=4\n"
#define TOKEN0 "token 0 1 decode\n"
#define CSV    "# route_trace v1 n_expert=4\n"
#define NAMES  "turn,phase,step,layer,slot,expert,weight\n"

static const struct {
    const char *text;
    unsigned line; /* 0: of no line */
    const char *why;
} refused[] = {
    {"", 1, "empty"},
    {"\n", 1, "not a routing trace"},
    {"a,b,c\n", 1, "not a routing trace"},
    {"# penstock routing trace v2\n", 1, "another version"},
    {OWN, 2, "without a token"},
    {OWN LAYER0, 3, "without a token"},
    {OWN TOKEN0, 2, "no layer was declared"},
    {OWN "# layer=1 experts=4\n", 2, "expected layer=0"},
    {OWN LAYER0 LAYER0, 3, "expected layer=1"},
    {OWN "# layer=0\n", 2, "experts=N"},
    {OWN "# layer=0 experts=0\n", 2, "experts=N"},
    {OWN "# layer=0 experts=99999999999\n", 2, "experts=N"},
    {OWN "# layer=0 experts=4 expert_bytes=-1\n", 2, "expert_bytes"},
    {OWN "# layer=0 experts=4 pool=x\n", 2, "pool"},
    {OWN LAYER0 "experts 0 1\n", 3, "before the first token"},
    {OWN LAYER0 "token\n", 3, "does not begin with"},
    {OWN LAYER0 "token x 1 decode\n", 3, "position"},
    {OWN LAYER0 "token 0 x decode\n", 3, "id"},
    {OWN LAYER0 "token 0 1 other\n", 3, "prefill"},
    {OWN LAYER0 "token 4294967296 1 decode\n", 3, "position"},
    {OWN LAYER0 TOKEN0, 3, "no experts follow"},
    {OWN LAYER0 TOKEN0 TOKEN0 "experts 0 1\n", 3, "no experts follow"},
    {OWN LAYER0 TOKEN0 "experts 1 1\n", 4, "layer 1 was not declared"},
    {OWN LAYER0 TOKEN0 "experts 0\n", 4, "EXPERT"},
    {OWN LAYER0 TOKEN0 "experts 0 \n", 4, "EXPERT"},
    {OWN LAYER0 TOKEN0 "experts 0 1:\n", 4, "EXPERT"},
    {OWN LAYER0 TOKEN0 "experts 0 1:nan\n", 4, "EXPERT"},
    {OWN LAYER0 TOKEN0 "experts 0 1,2\n", 4, "EXPERT"},
    {OWN LAYER0 TOKEN0 "experts 0 4\n", 4, "experts 0 to 3, not 4"},
    {OWN LAYER0 TOKEN0 "experts 0 1 2 1\n", 4, "named twice"},
    {OWN LAYER0 TOKEN0 "experts 0 1\nexperts 0 2\n", 5, "after layer 0"},
    {OWN LAYER0 TOKEN0 "experts 0 1\n# layer=1 experts=4\n", 5, "after the first token"},
    {OWN LAYER0 TOKEN0 "ahead 0 1 1\n", 4, "ahead"},
    {OWN LAYER0 TOKEN0 "ahead 0 x 1 1:0.5\n", 4, "ahead"},
    {OWN LAYER0 TOKEN0 "ahead 0 1 0 1:0.5\n", 4, "ahead"},
    {OWN LAYER0 TOKEN0 "ahead 0 1 1 1\n", 4, "probability"},
    {OWN LAYER0 TOKEN0 "ahead 0 1 1 1:1.5\n", 4, "probability"},
    {OWN LAYER0 TOKEN0 "ahead 0 1 1 1:0.5 1:0.5\n", 4, "named twice"},
    {OWN LAYER0 TOKEN0 "ahead 0 1 1 9:0.5\n", 4, "not 9"},
    {OWN LAYER0 TOKEN0 "experts 0 1:0.2 2:0.1", 4, "cut short"},
    {OWN LAYER0 TOKEN0 "experts 0 1\nrubbish\n", 5, "does not begin with"},
    {CSV, 2, "without a token"},
    {CSV NAMES, 3, "without a token"},
    {CSV "turn,phase,step,slot,expert\n", 2, "\"layer\""},
    {CSV NAMES "0,1,0,0,0,1\n", 3, "fewer"},
    {CSV NAMES "0,1,0,0,0,1,1,1\n", 3, "more"},
    {CSV NAMES "0,1,0,0,0,x,1\n", 3, "expert \"x\""},
    {CSV NAMES "0,1,0,0,0,1,inf\n", 3, "weight"},
    {CSV NAMES "0,1,0,0,0,-1,1\n", 3, "expert"},
    {CSV NAMES "0,1,0,4096,0,1,1\n", 3, "layer"},
    {CSV NAMES "0,1,0,0,0,99999999999999999999,1\n", 3, "expert"},
    {CSV NAMES "0,2,0,0,0,1,1\n", 3, "phase"},
    {CSV NAMES "0,1,0,0,0,4,1\n", 3, "not 4"},
    {CSV NAMES "0,1,0,0,0,1,1\n0,1,1,0,0,1,1\n0,1,0,0,1,1,1\n", 5, "named twice"},
    {"# route_trace v1 n_expert=x\n", 1, "n_expert"},
    {CSV "# layer=5000 expert_bytes=1\n", 2, "layer"},
    {CSV "# layer=0 expert_bytes=x\n", 2, "expert_bytes"},
    {"{\"tok\": 1, \"layers\": [[1, 2]", 1, "not JSON"},
    {"{\"tok\": 1, \"layers\": [[1]]}\n{\"tok\": 2, \"layers\"", 2, "not JSON"},
    {"{\"tok\": 1}\n", 1, "layers"},
    {"{\"layers\": []}\n", 1, "layers"},
    {"{\"layers\": 3}\n", 1, "layers"},
    {"{\"layers\": [3]}\n", 1, "not an array"},
    {"{\"layers\": [[]]}\n", 1, "no layer has experts"},
    {"{\"layers\": [[1.5]]}\n", 1, "whole numbers"},
    {"{\"layers\": [[-1]]}\n", 1, "whole numbers"},
    {"{\"layers\": [[65536]]}\n", 1, "whole numbers"},
    {"{\"layers\": [[99999999999999999999]]}\n", 1, "not JSON"},
    {"{\"layers\": [[1, 1]]}\n", 1, "named twice"},
    {"{\"tok\": -1, \"layers\": [[1]]}\n", 1, "tok"},
    {"{\"layers\": [[1]]}\n{\"layers\": [[1], [1]]}\n", 2, "has 2 layers"},
};

static void assert_refused(unsigned line, const char *why)
{
    struct route_trace *t;
    struct ps_error err = {0};
    char place[160];
    snprintf(place, sizeof(place), "%s: line %u: ", path, line);
    assert_int_equal(route_trace_read(&t, path, &err), PS_ERR_FORMAT);
    assert_null(t);
    if (strncmp(err.message, place, strlen(place)) != 0 || !strstr(err.message + strlen(place), why))
        fail_msg("\"%s\" does not name line %u and \"%s\"", err.message, line, why);
}

static void what_is_wrong_is_said_with_its_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        write_bytes(refused[i].text, strlen(refused[i].text));
        assert_refused(refused[i].line, refused[i].why);
    }
}

static void binary_rubbish_is_no_text(void **state)
{
    (void)state;
    write_bytes("GGUF\3\0\0\0\n", 9);
    assert_refused(1, "not a text file");
    write_bytes(OWN LAYER0 TOKEN0 "experts\0 0 1\n", sizeof(OWN LAYER0 TOKEN0 "experts\0 0 1\n") - 1);
    assert_refused(4, "not a text file");
    size_t n = 5 << 20;
    char *line = malloc(n);
    memset(line, 'x', n);
    write_bytes(line, n);
    free(line);
    assert_refused(1, "longer than");
}

static void files_that_cannot_be_read_are_named(void **state)
{
    (void)state;
    struct route_trace *t;
    struct ps_error err;
    assert_int_equal(route_trace_read(&t, "/nowhere/at/all", &err), PS_ERR_IO);
    assert_non_null(strstr(err.message, "/nowhere/at/all: cannot open: No such file"));
    assert_int_equal(route_trace_read(&t, directory, &err), PS_ERR_IO);
    assert_non_null(strstr(err.message, "cannot read: Is a directory"));
    assert_null(t);
}

/* ---- mutations ---- */

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Changes, drops, repeats or moves a few bytes. */
static size_t mutate(const char *text, size_t n, char *out, uint32_t *seed)
{
    static const char bytes[] = "0123456789 :,.-[]{}\"\n#etx\xff";
    memcpy(out, text, n);
    for (uint32_t i = next_random(seed) % 3 + 1; i > 0 && n > 0; i--) {
        uint32_t at = next_random(seed) % (uint32_t)n;
        uint32_t length = next_random(seed) % 12;
        length = length < n - at ? length : (uint32_t)(n - at);
        switch (next_random(seed) % 4) {
        case 0:
            out[at] = bytes[next_random(seed) % (sizeof(bytes) - 1)];
            break;
        case 1:
            memmove(out + at, out + at + length, n - at - length);
            n -= length;
            break;
        case 2:
            memmove(out + at + length, out + at, n - at);
            n += length;
            break;
        default:
            n = at;
        }
    }
    return n;
}

static void check_mutation(void)
{
    struct route_trace *t;
    struct ps_error err = {0};
    enum ps_status status = route_trace_read(&t, path, &err);
    if (status != PS_OK) {
        assert_int_equal(status, PS_ERR_FORMAT);
        assert_true(strncmp(err.message, path, strlen(path)) == 0 && !strchr(err.message, '\n'));
        return;
    }
    /* What was accepted is whole: the replay refuses ids that are out of range or come twice. */
    struct route_replay *replay;
    struct replay_result result;
    assert_int_equal(route_replay_new(&replay, t, &err), PS_OK);
    if (route_replay_run(replay, cache_policy_at(0), route_replay_n_shards(replay), 0, &result, &err) !=
        PS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(result.accesses, t->n_ids);
    assert_int_equal(result.tokens, t->n_tokens);
    for (uint64_t i = 0; i < t->n_predictions; i++)
        assert_true(t->predictions[i].layer < t->n_layers && t->predictions[i].token < t->n_tokens);
    route_replay_free(replay);
    route_trace_free(t);
}

static void mutated_traces_are_read_whole_or_refused(void **state)
{
    (void)state;
    const char *const texts[] = {own_text, csv_text, json_text};
    uint32_t seed = 1;
    for (uint32_t i = 0; i < THINNED(6000, 1500); i++) {
        char mutated[sizeof(own_text) + sizeof(csv_text) + 64];
        write_bytes(mutated, mutate(texts[i % 3], strlen(texts[i % 3]), mutated, &seed));
        check_mutation();
    }
}

/* ---- replay ---- */

static void pools_are_replayed_as_caches_of_their_own(void **state)
{
    (void)state;
    struct ps_error err;
    struct route_trace_writer *writer = new_writer("m");
    const int32_t token = 1;
    for (uint32_t i = 0; i < 40; i++)
        feed(writer, i, &token, 1, true);
    assert_int_equal(route_trace_writer_finish(writer, &err), PS_OK);
    route_trace_writer_free(writer);

    struct route_trace *t = read_file(path);
    struct route_replay *replay;
    struct replay_result both;
    assert_int_equal(route_replay_new(&replay, t, &err), PS_OK);
    assert_int_equal(route_replay_n_shards(replay), 24);
    assert_int_equal(route_replay_least_slots(replay), 2 * TOP_K);
    assert_int_equal(route_replay_run(replay, cache_policy_find("lru"), 3, 0, &both, &err), PS_ERR_ARGUMENT);

    /* 9 of 24 slots: 6 of the 16 of layers 0 and 2, 3 of the 8 of layer 1. */
    uint64_t hits = 0;
    for (uint32_t pool = 0; pool < 2; pool++) {
        struct replay_visit visits[2 * 40];
        uint32_t n_experts[LAYERS] = {8, 0, 8};
        if (pool == 1)
            memcpy(n_experts, IDS(0, 8, 0), sizeof(n_experts));
        struct replay_trace part = {
            .n_layers = LAYERS, .n_experts = n_experts, .visits = visits, .ids = t->ids};
        for (uint64_t v = 0; v < t->n_visits; v++) {
            if (layers[t->visits[v].layer].pool == pool)
                visits[part.n_visits++] = t->visits[v];
        }
        struct replay_result result;
        assert_int_equal(cache_replay_belady(&part, pool == 0 ? 6 : 3, 10, &result, &err), PS_OK);
        hits += result.hits;
    }
    assert_int_equal(route_replay_run(replay, NULL, 9, 10, &both, &err), PS_OK);
    assert_int_equal(both.hits, hits);
    assert_int_equal(both.tokens, 30);
    assert_int_equal(both.accesses, 30 * LAYERS * TOP_K);
    assert_true(hits > 0);
    route_replay_free(replay);
    route_trace_free(t);
}

#define TEST(function) cmocka_unit_test_teardown(function, remove_file)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(own_format_is_read_as_it_is_documented),
        TEST(lines_may_end_as_on_windows),
        TEST(what_is_written_is_read_back_token_by_token),
        TEST(a_chunk_that_failed_leaves_nothing_behind),
        TEST(an_unfinished_trace_leaves_no_file_and_an_old_one_as_it_was),
        TEST(only_regular_files_are_replaced),
        TEST(a_full_disk_is_reported_while_it_records),
        TEST(csv_rows_are_put_in_the_order_of_tokens),
        TEST(json_lines_need_no_ranks_and_no_last_newline),
        TEST(recordings_of_real_models_give_the_hit_rates_known_of_them),
        TEST(what_is_wrong_is_said_with_its_line),
        TEST(binary_rubbish_is_no_text),
        TEST(files_that_cannot_be_read_are_named),
        TEST(mutated_traces_are_read_whole_or_refused),
        TEST(pools_are_replayed_as_caches_of_their_own),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
