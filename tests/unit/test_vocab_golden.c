/* Real vocabularies: the tokens that llama.cpp v0.5.0 gives for its own test strings, and the way back to text. */
#include "gguf_fixture.h"

#include "runtime/vocab.h"

static const char separator[] = "\n__ggml_vocab_test__\n";

struct golden {
    struct gguf *gguf;
    struct vocab *vocab;
    char *input, *output;
};

/* False where the golden data is absent. */
static bool golden_open(struct golden *g, const char *name)
{
    char path[512];
    size_t bytes;
    struct ps_error err;
    snprintf(path, sizeof(path), "%s/tokenizers/ggml-vocab-%s.gguf", TEST_SHARED_DIR, name);
    if (access(path, R_OK) != 0) {
        print_message("%s is absent\n", path);
        return false;
    }
    g->gguf = open_ok(path);
    if (vocab_new(&g->vocab, g->gguf, &err) != PS_OK)
        fail_msg("%s: %s", name, err.message);
    strcat(path, ".inp");
    g->input = (char *)load_file(path, &bytes);
    g->input[bytes] = 0;
    strcpy(path + strlen(path) - 4, ".out");
    g->output = (char *)load_file(path, &bytes);
    g->output[bytes] = 0;
    return true;
}

static void golden_close(struct golden *g)
{
    vocab_free(g->vocab);
    gguf_free(g->gguf);
    free(g->input);
    free(g->output);
}

static void check_ids(const char *name, uint32_t index, const int32_t *ids, size_t n, const char *line)
{
    char *end;
    for (size_t i = 0; i < n; i++) {
        long expected = strtol(line, &end, 10);
        if (end == line || expected != ids[i])
            fail_msg("%s: string %u: token %zu is %d, not %ld", name, index, i, ids[i], expected);
        line = end;
    }
    if (line[strspn(line, " ")] != '\n')
        fail_msg("%s: string %u: %zu tokens are too few", name, index, n);
}

static void check_text(const char *name, uint32_t index, const struct vocab *vocab, const int32_t *ids,
                       size_t n, const char *text, size_t length)
{
    char *got = malloc(length + 64);
    assert_non_null(got);
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        bytes += vocab_piece(vocab, ids[i], i == 0, true, got + bytes, length + 64 - bytes);
        assert_true(bytes < length + 64);
    }
    if (bytes != length || memcmp(got, text, length) != 0)
        fail_msg("%s: string %u does not come back: \"%.*s\"", name, index, (int)bytes, got);
    free(got);
}

static void same_tokens(const char *name)
{
    struct golden g;
    if (!golden_open(&g, name))
        skip();
    const char *text = g.input, *line = g.output;
    uint32_t index = 0;
    for (; *line; index++) {
        const char *stop = strstr(text, separator);
        size_t length = stop ? (size_t)(stop - text) : strlen(text);
        int32_t *ids;
        size_t n;
        assert_int_equal(vocab_encode(g.vocab, text, length, false, false, &ids, &n, NULL), PS_OK);
        check_ids(name, index, ids, n, line);
        check_text(name, index, g.vocab, ids, n, text, length);
        free(ids);
        text += length + (stop ? strlen(separator) : 0);
        line = strchr(line, '\n') + 1;
    }
    assert_true(index > 40);
    golden_close(&g);
}

static void gpt2_gives_the_same_tokens(void **state)
{
    (void)state;
    same_tokens("gpt-2");
}

static void llama_bpe_gives_the_same_tokens(void **state)
{
    (void)state;
    same_tokens("llama-bpe");
}

static void llama_spm_gives_the_same_tokens(void **state)
{
    (void)state;
    same_tokens("llama-spm");
}

static void qwen2_gives_the_same_tokens(void **state)
{
    (void)state;
    same_tokens("qwen2");
}

static void qwen35_gives_the_same_tokens(void **state)
{
    (void)state;
    same_tokens("qwen35");
}

static void deepseek_llm_gives_the_same_tokens(void **state)
{
    (void)state;
    same_tokens("deepseek-llm");
}

static void gemma4_gives_the_same_tokens(void **state)
{
    (void)state;
    same_tokens("gemma-4");
}

/* Which tokens end a generation, and what special text becomes: as llama.cpp v0.5.0 answers for these files. */
static void special_tokens_are_llama_cpps(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool adds_bos;
        int32_t bos;
        int32_t ends[4]; /* -1: no more */
        const char *text;
        int32_t ids[12]; /* with special tokens, parsed; -1: no more */
    } cases[] = {
        {"gpt-2", false, 50256, {50256, -1}, "a<|endoftext|>", {64, 50256, -1}},
        {"llama-bpe", true, 128000, {128001, 128009, -1}, "<|eot_id|>a", {128000, 128009, 64, -1}},
        {"llama-spm", true, 1, {2, -1}, "a</s>a", {1, 263, 2, 263, -1}},
        {"qwen2", false, 151643, {128247, 151643, 151645, -1}, "<|im_start|>a", {151644, 64, -1}},
        {"deepseek-llm", true, 100000, {100001, -1}, "a", {100000, 64, -1}},
        {"gemma-4", true, 2, {1, 50, 106, -1}, "a<turn|>", {2, 236746, 106, -1}},
    };
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        struct golden g;
        if (!golden_open(&g, cases[c].name))
            skip();
        assert_int_equal(vocab_adds_bos(g.vocab), cases[c].adds_bos);
        assert_int_equal(vocab_bos(g.vocab), cases[c].bos);
        uint32_t next = 0;
        for (uint32_t id = 0; id < vocab_size(g.vocab); id++) {
            if (vocab_is_end(g.vocab, (int32_t)id))
                assert_int_equal(id, cases[c].ends[next++]);
        }
        assert_int_equal(cases[c].ends[next], -1);
        int32_t *ids;
        size_t n;
        assert_int_equal(
            vocab_encode(g.vocab, cases[c].text, strlen(cases[c].text), true, true, &ids, &n, NULL), PS_OK);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(ids[i], cases[c].ids[i]);
        assert_int_equal(cases[c].ids[n], -1);
        free(ids);
        golden_close(&g);
    }
}

static void a_large_vocabulary_is_compact(void **state)
{
    (void)state;
    struct golden g;
    if (!golden_open(&g, "gemma-4")) /* 262,144 tokens, 514,906 merges */
        skip();
    assert_in_range(vocab_memory(g.vocab), 1 << 20, 8 << 20);
    golden_close(&g);
}

static void fable_moe_encodes_without_bos_and_back(void **state)
{
    (void)state;
    const char *path = TEST_SHARED_DIR "/models/fable-moe-q8_0.gguf";
    if (access(path, R_OK) != 0) {
        print_message("%s is absent\n", path);
        skip();
    }
    struct gguf *gguf = open_ok(path);
    struct vocab *vocab;
    assert_int_equal(vocab_new(&vocab, gguf, NULL), PS_OK);
    assert_int_equal(vocab_size(vocab), 2048);
    static const char *const texts[] = {"Once upon a time", " The fox said: \"No!\" And left.",
                                        "naïve 中文 😀", "a"};
    for (uint32_t t = 0; t < sizeof(texts) / sizeof(texts[0]); t++) {
        int32_t *ids;
        size_t n;
        assert_int_equal(vocab_encode(vocab, texts[t], strlen(texts[t]), true, false, &ids, &n, NULL), PS_OK);
        assert_true(n > 0 && ids[0] != vocab_bos(vocab));
        check_text("fable-moe", t, vocab, ids, n, texts[t], strlen(texts[t]));
        free(ids);
    }
    vocab_free(vocab);
    gguf_free(gguf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_gives_the_same_tokens),
        cmocka_unit_test(llama_bpe_gives_the_same_tokens),
        cmocka_unit_test(llama_spm_gives_the_same_tokens),
        cmocka_unit_test(qwen2_gives_the_same_tokens),
        cmocka_unit_test(qwen35_gives_the_same_tokens),
        cmocka_unit_test(deepseek_llm_gives_the_same_tokens),
        cmocka_unit_test(gemma4_gives_the_same_tokens),
        cmocka_unit_test(special_tokens_are_llama_cpps),
        cmocka_unit_test(a_large_vocabulary_is_compact),
        cmocka_unit_test(fable_moe_encodes_without_bos_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
