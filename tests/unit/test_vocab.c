/* Vocabularies made for the test: what the tokenizers promise, rule by rule, and what they refuse. Real ones: test_vocab_golden. */
#include "gguf_fixture.h"

#include "runtime/pretokenize.h"
#include "runtime/utf8.h"
#include "runtime/vocab.h"
#include "thinned.h"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };

enum { MAX_TOKENS = 400 };

/* A vocabulary and how it comes to be; tokens are collected, then written by build(). */
struct fixture {
    struct gguf_writer *writer;
    char texts[MAX_TOKENS][40];
    const char *pointers[MAX_TOKENS];
    int32_t types[MAX_TOKENS];
    float scores[MAX_TOKENS];
    uint32_t n;
    struct gguf *gguf;
    struct vocab *vocab;
};

static void add_token(struct fixture *f, const char *text, int32_t type, float score)
{
    assert_true(f->n < MAX_TOKENS && strlen(text) < sizeof(f->texts[0]));
    strcpy(f->texts[f->n], text);
    f->pointers[f->n] = f->texts[f->n];
    f->types[f->n] = type;
    f->scores[f->n++] = score;
}

static void begin(struct fixture *f, const char *model)
{
    *f = (struct fixture){.writer = writer_new(scratch_path("vocab.gguf"))};
    gguf_writer_set_string(f->writer, "general.architecture", "llama");
    gguf_writer_set_string(f->writer, "tokenizer.ggml.model", model);
}

/* GPT-2's byte alphabet, written out here a second time: printable bytes stand for themselves, the rest follow from U+0100. */
static void alphabet_text(unsigned byte, char *out)
{
    uint32_t next = 0x100;
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        uint32_t code_point = printable ? b : next++;
        if (b == byte)
            out[utf8_put(code_point, out)] = 0;
    }
}

/* Tokens 0..255 are the bytes. */
static void begin_bpe(struct fixture *f, const char *pre)
{
    begin(f, "gpt2");
    if (pre)
        gguf_writer_set_string(f->writer, "tokenizer.ggml.pre", pre);
    for (unsigned b = 0; b < 256; b++) {
        char text[8];
        alphabet_text(b, text);
        add_token(f, text, NORMAL, 0);
    }
}

/* Tokens 0..2 are <unk>, <s>, </s>; 3..258 the bytes. */
static void begin_spm(struct fixture *f)
{
    begin(f, "llama");
    add_token(f, "<unk>", UNKNOWN, 0);
    add_token(f, "<s>", CONTROL, 0);
    add_token(f, "</s>", CONTROL, 0);
    for (unsigned b = 0; b < 256; b++) {
        char text[8];
        snprintf(text, sizeof(text), "<0x%02X>", b);
        add_token(f, text, BYTE, 0);
    }
}

static void write_tokens(struct fixture *f)
{
    gguf_writer_set_strings(f->writer, "tokenizer.ggml.tokens", f->pointers, f->n);
    gguf_writer_set_array(f->writer, "tokenizer.ggml.token_type", GGUF_INT32, f->types, f->n);
    gguf_writer_set_array(f->writer, "tokenizer.ggml.scores", GGUF_FLOAT32, f->scores, f->n);
}

static enum ps_status try_build(struct fixture *f, struct ps_error *err)
{
    writer_complete(f->writer, 0);
    f->gguf = open_ok(scratch_path("vocab.gguf"));
    return vocab_new(&f->vocab, f->gguf, err);
}

static void build(struct fixture *f, const char *const *merges, uint32_t n_merges)
{
    struct ps_error err;
    write_tokens(f);
    gguf_writer_set_strings(f->writer, "tokenizer.ggml.merges", merges, n_merges);
    if (try_build(f, &err) != PS_OK)
        fail_msg("%s", err.message);
}

static void end(struct fixture *f)
{
    vocab_free(f->vocab);
    gguf_free(f->gguf);
}

static int32_t id_of(const struct fixture *f, const char *text)
{
    for (uint32_t i = 0; i < f->n; i++) {
        if (strcmp(f->texts[i], text) == 0)
            return (int32_t)i;
    }
    fail_msg("no token '%s'", text);
    return -1;
}

enum { ADD_SPECIAL = 1, PARSE_SPECIAL = 2 };

/* Encodes and expects the tokens with these texts, separated by blanks. */
static void encodes_bytes(const struct fixture *f, const char *text, size_t length, int flags,
                          const char *expected)
{
    int32_t *ids;
    size_t n;
    struct ps_error err;
    if (vocab_encode(f->vocab, text, length, flags & ADD_SPECIAL, flags & PARSE_SPECIAL, &ids, &n, &err) !=
        PS_OK)
        fail_msg("%s", err.message);
    char got[4096] = "";
    for (size_t i = 0; i < n; i++) {
        assert_in_range(ids[i], 0, f->n - 1);
        if (i > 0)
            strcat(got, " ");
        assert_true(strlen(got) + 32 < sizeof(got));
        strcat(got, f->texts[ids[i]]);
    }
    free(ids);
    assert_string_equal(got, expected);
}

static void encodes(const struct fixture *f, const char *text, int flags, const char *expected)
{
    encodes_bytes(f, text, strlen(text), flags, expected);
}

static void bpe_merges_in_order_of_rank(void **state)
{
    (void)state;
    struct fixture f;
    begin_bpe(&f, "gpt-2");
    add_token(&f, "bc", NORMAL, 0);
    add_token(&f, "ab", NORMAL, 0);
    add_token(&f, "abc", NORMAL, 0);
    add_token(&f, "aa", NORMAL, 0);
    add_token(&f,
              "\xC4\xA0"
              "a",
              NORMAL, 0); /* Ġa */
    const char *merges[] = {"b c", "a b", "ab c", "a a", "\xC4\xA0 a", "a b", "nospace", "x yz"};
    build(&f, merges, 8);
    encodes(&f, "abc", 0, "a bc");
    encodes(&f, "abd", 0, "ab d");
    encodes(&f, "aaa", 0, "aa a"); /* the leftmost of equals */
    encodes(&f, "aaaab", 0, "aa a ab");
    encodes(&f, "b a", 0,
            "b \xC4\xA0"
            "a");
    encodes(&f, "", 0, "");
    end(&f);
}

static void a_merge_to_an_unknown_token_falls_back_to_bytes(void **state)
{
    (void)state;
    struct fixture f;
    begin_bpe(&f, "gpt-2");
    const char *merges[] = {"a b", "zz zz", "q", "", " "};
    build(&f, merges, 5);
    encodes(&f, "cab", 0, "c a b");
    end(&f);
}

static void a_million_equal_merges_are_no_trap(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    const char **merges = malloc(N * sizeof(*merges));
    assert_non_null(merges);
    for (int i = 0; i < N; i++)
        merges[i] = "a b";
    struct fixture f;
    begin_bpe(&f, "gpt-2");
    add_token(&f, "ab", NORMAL, 0);
    build(&f, merges, N);
    encodes(&f, "abc", 0, "ab c"); /* at once; one chain of them would take an hour */
    end(&f);
    free(merges);
}

static void ignore_merges_takes_a_word_that_is_a_token(void **state)
{
    (void)state;
    const char *merges[] = {"a b"};
    for (int ignores = 0; ignores < 2; ignores++) {
        struct fixture f;
        begin_bpe(&f, ignores ? "llama-bpe" : "qwen2");
        add_token(&f, "ab", NORMAL, 0);
        add_token(&f, "abc", NORMAL, 0);
        build(&f, merges, 1);
        encodes(&f, "abc", 0, ignores ? "abc" : "ab c");
        end(&f);
    }
}

static void gemma4_keeps_runs_of_newlines_and_plain_text(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f, "gemma4");
    add_token(&f, "<bos>", CONTROL, 0);
    gguf_writer_set_u32(f.writer, "tokenizer.ggml.bos_token_id", 0);
    gguf_writer_set_bool(f.writer, "tokenizer.ggml.add_bos_token", false); /* and yet it is added */
    for (const char *const *t =
             (const char *const[]){"a", "\n", "\n\n", "▁", "é", "▁a", "<0xE4>", "<0xB8>", "<0xAD>", NULL};
         *t; t++)
        add_token(&f, *t, (*t)[0] == '<' ? BYTE : NORMAL, 0);
    const char *merges[] = {"▁ a", "\n \n"};
    build(&f, merges, 2);
    encodes(&f, "a a", ADD_SPECIAL, "<bos> a ▁a");
    encodes(&f, "é\n\na", 0, "é \n\n a");
    encodes(&f, "中", 0, "<0xE4> <0xB8> <0xAD>");
    char piece[8] = "";
    assert_int_equal(vocab_piece(f.vocab, id_of(&f, "▁a"), false, false, piece, sizeof(piece)), 2);
    assert_string_equal(piece, " a");
    end(&f);
}

static void spm_merges_the_highest_score_first(void **state)
{
    (void)state;
    struct fixture f;
    begin_spm(&f);
    gguf_writer_set_bool(f.writer, "tokenizer.ggml.add_space_prefix", false);
    for (const char *const *t = (const char *const[]){"a", "b", "c", NULL}; *t; t++)
        add_token(&f, *t, NORMAL, -100);
    add_token(&f, "ab", NORMAL, -2);
    add_token(&f, "bc", NORMAL, -1);
    add_token(&f, "aa", NORMAL, 3);
    add_token(&f, "ca", NORMAL, 3);
    build(&f, NULL, 0);
    encodes(&f, "abc", 0, "a bc");
    encodes(&f, "aaa", 0, "aa a");
    encodes(&f, "caab", 0, "ca ab");
    encodes(&f, "é", 0, "<0xC3> <0xA9>");
    encodes_bytes(&f, "a\xFF", 2, 0, "a <0xFF>");
    encodes_bytes(&f, "a\0a", 3, 0, "a <0x00> a");
    end(&f);
}

static void spm_puts_a_space_in_front_of_text_and_takes_it_back(void **state)
{
    (void)state;
    struct fixture f;
    begin_spm(&f);
    add_token(&f, "a", NORMAL, -1);
    add_token(&f, "▁", NORMAL, -1);
    add_token(&f, "▁a", NORMAL, 0);
    build(&f, NULL, 0);
    encodes(&f, "a a", ADD_SPECIAL, "<s> ▁a ▁a");
    encodes(&f, " a", 0, "▁ ▁a");
    encodes(&f, "a</s>a", PARSE_SPECIAL, "▁a </s> ▁a");
    encodes(&f, "", ADD_SPECIAL, "<s>");
    char piece[4] = "";
    assert_int_equal(vocab_piece(f.vocab, id_of(&f, "▁a"), true, false, piece, sizeof(piece)), 1);
    assert_string_equal(piece, "a");
    assert_int_equal(vocab_piece(f.vocab, id_of(&f, "▁a"), false, false, piece, sizeof(piece)), 2);
    assert_memory_equal(piece, " a", 2);
    assert_int_equal(vocab_piece(f.vocab, id_of(&f, "<0xC3>"), false, false, piece, sizeof(piece)), 1);
    assert_int_equal((unsigned char)piece[0], 0xC3);
    end(&f);
}

static void spm_without_byte_tokens_gives_unknown(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f, "llama");
    add_token(&f, "<unk>", UNKNOWN, 0);
    add_token(&f, "<s>", CONTROL, 0);
    add_token(&f, "</s>", CONTROL, 0);
    add_token(&f, "▁", NORMAL, 0);
    build(&f, NULL, 0);
    encodes(&f, "x", 0, "▁ <unk>");
    end(&f);
}

static void special_tokens_are_found_longest_first(void **state)
{
    (void)state;
    struct fixture f;
    begin_bpe(&f, "qwen2");
    add_token(&f, "<|a|>", CONTROL, 0);
    add_token(&f, "<|a|><|b|>", CONTROL, 0);
    add_token(&f, "|><|b", USER_DEFINED, 0);
    add_token(&f, "<|b|>", CONTROL, 0);
    add_token(&f, "<u>", USER_DEFINED, 0);
    build(&f, NULL, 0);
    encodes(&f, "<|a|><|b|><|b|>x", PARSE_SPECIAL, "<|a|><|b|> <|b|> x");
    encodes(&f, "<|a|>x<|a|>", PARSE_SPECIAL, "<|a|> x <|a|>");
    encodes(&f, "<|a|><u>", PARSE_SPECIAL, "<|a|> <u>");
    /* Without parsing, control tokens are text; user-defined ones are found all the same. */
    encodes(&f, "<|a|><u>", 0, "< | a | > <u>");
    encodes(&f, "<|a|><|b|>", 0, "< | a |><|b | >");
    encodes(&f, "<u", PARSE_SPECIAL, "< u");
    end(&f);
}

static void special_tokens_of_phi3_swallow_space(void **state)
{
    (void)state;
    struct fixture f;
    begin_spm(&f);
    gguf_writer_set_string(f.writer, "general.name", "Tiny Phi-3 Mini");
    gguf_writer_set_bool(f.writer, "tokenizer.ggml.add_space_prefix", false);
    add_token(&f, "<|user|>", CONTROL, 0);
    add_token(&f, "a", NORMAL, 0);
    add_token(&f, "▁", NORMAL, 0);
    build(&f, NULL, 0);
    encodes(&f, "<|user|> \n a", PARSE_SPECIAL, "<|user|> a");
    encodes(&f, "a <s> a", PARSE_SPECIAL, "a ▁ <s> ▁ a");
    end(&f);
}

static void ends_are_known_by_key_and_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *names[4];
        const char *ends; /* a letter per name */
    } cases[] = {
        {{"<|im_end|>", "<|endoftext|>", "</s>", "<|im_start|>"}, "yyyn"},
        {{"<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|x|>"}, "yyyn"},
        {{"<|end|>", "<|return|>", "<|call|>", "<|start|>"}, "nyyn"},
        {{"<|end|>", "<|return|>", "<|x|>", "<|y|>"}, "yynn"},
        {{"<|end|>", "<|flush|>", "<|calls|>", "<|y|>"}, "nyyn"},
        {{"</s>", "<|tool_response>", "<turn|>", "<eos>"}, "nyyy"},
        {{"<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>"}, "yyyn"},
        {{"[EOS]", "[EOT]", "[e~[", "<｜end▁of▁sentence｜>"}, "yyyy"},
    };
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        struct fixture f;
        begin_bpe(&f, "qwen2");
        for (int i = 0; i < 4; i++)
            add_token(&f, cases[c].names[i], NORMAL, 0);
        gguf_writer_set_u32(f.writer, "tokenizer.ggml.eos_token_id", 7);
        gguf_writer_set_u32(f.writer, "tokenizer.ggml.eot_token_id", 8);
        gguf_writer_set_u32(f.writer, "tokenizer.ggml.eom_token_id", 9);
        build(&f, NULL, 0);
        for (int i = 0; i < 4; i++) {
            if (vocab_is_end(f.vocab, 256 + i) != (cases[c].ends[i] == 'y'))
                fail_msg("%s", cases[c].names[i]);
        }
        for (int32_t id = 6; id <= 10; id++)
            assert_int_equal(vocab_is_end(f.vocab, id), id >= 7 && id <= 9);
        assert_false(vocab_is_end(f.vocab, -1));
        assert_false(vocab_is_end(f.vocab, (int32_t)f.n));
        end(&f);
    }
}

static void bos_and_eos_follow_metadata_and_the_models_default(void **state)
{
    (void)state;
    static const struct {
        const char *pre;
        int add_bos, add_eos; /* -1: not in the metadata */
        const char *expected;
    } cases[] = {{"qwen2", -1, -1, "a"},       {"qwen2", 1, -1, "B a"},    {"qwen2", 1, 1, "B a E"},
                 {"llama-bpe", -1, -1, "B a"}, {"llama-bpe", 0, 1, "a E"}, {"tekken", -1, 0, "B a"}};
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        struct fixture f;
        begin_bpe(&f, cases[c].pre);
        gguf_writer_set_u32(f.writer, "tokenizer.ggml.bos_token_id", 'B');
        gguf_writer_set_u32(f.writer, "tokenizer.ggml.eos_token_id", 'E');
        if (cases[c].add_bos >= 0)
            gguf_writer_set_bool(f.writer, "tokenizer.ggml.add_bos_token", cases[c].add_bos);
        if (cases[c].add_eos >= 0)
            gguf_writer_set_bool(f.writer, "tokenizer.ggml.add_eos_token", cases[c].add_eos);
        build(&f, NULL, 0);
        encodes(&f, "a", ADD_SPECIAL, cases[c].expected);
        encodes(&f, "a", 0, "a");
        assert_int_equal(vocab_adds_bos(f.vocab), cases[c].expected[0] == 'B');
        assert_int_equal(vocab_bos(f.vocab), 'B');
        assert_int_equal(vocab_eos(f.vocab), 'E');
        end(&f);
    }
}

static void ids_out_of_range_leave_the_default(void **state)
{
    (void)state;
    struct fixture f;
    begin_bpe(&f, "glm4");
    gguf_writer_set_u32(f.writer, "tokenizer.ggml.bos_token_id", 100000);
    gguf_writer_set_u64(f.writer, "tokenizer.ggml.eos_token_id", UINT64_MAX);
    gguf_writer_set_i32(f.writer, "tokenizer.ggml.eot_token_id", -1);
    build(&f, NULL, 0);
    assert_int_equal(vocab_bos(f.vocab), -1);
    assert_int_equal(vocab_eos(f.vocab), 11);
    end(&f);
}

static void pieces_show_control_tokens_only_when_asked(void **state)
{
    (void)state;
    struct fixture f;
    begin_bpe(&f, "qwen2");
    add_token(&f, "<|a|>", CONTROL, 0);
    add_token(&f, "<u>", USER_DEFINED, 0);
    add_token(&f, "gone", UNUSED, 0);
    add_token(&f,
              "\xC4\xA0"
              "中",
              NORMAL, 0); /* a character that is not of the byte alphabet stays */
    build(&f, NULL, 0);
    static const struct {
        const char *token, *hidden, *shown;
    } cases[] = {{"<|a|>", "", "<|a|>"},
                 {"<u>", "<u>", "<u>"},
                 {"gone", "", ""},
                 {"\xC4\xA0"
                  "中",
                  " 中", " 中"}};
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        for (int shown = 0; shown < 2; shown++) {
            char piece[32];
            size_t n =
                vocab_piece(f.vocab, id_of(&f, cases[c].token), false, shown, piece, sizeof(piece) - 1);
            piece[n] = 0;
            assert_string_equal(piece, shown ? cases[c].shown : cases[c].hidden);
        }
    }
    end(&f);
}

static void piece_writes_no_more_than_it_may(void **state)
{
    (void)state;
    struct fixture f;
    begin_bpe(&f, "qwen2");
    add_token(&f,
              "\xC4\xA0"
              "abcd",
              NORMAL, 0);
    build(&f, NULL, 0);
    char piece[8] = "#######";
    assert_int_equal(vocab_piece(f.vocab, 256, false, false, NULL, 0), 5);
    assert_int_equal(vocab_piece(f.vocab, 256, false, false, piece, 2), 5);
    assert_string_equal(piece, " a#####");
    assert_int_equal(vocab_piece(f.vocab, 257, false, false, piece, 8), 0);
    assert_int_equal(vocab_piece(f.vocab, -1, false, false, piece, 8), 0);
    end(&f);
}

/* The text that bytes stand for once what is not UTF-8 has become U+FFFD; the caller frees it. */
static char *readable(const char *bytes, size_t length, size_t *out_length)
{
    char *out = malloc(3 * length + 1);
    assert_non_null(out);
    size_t n = 0;
    for (size_t at = 0; at < length;) {
        uint32_t code_point;
        at += utf8_decode(bytes + at, length - at, &code_point);
        n += utf8_put(code_point, out + n);
    }
    *out_length = n;
    return out;
}

static void comes_back(struct vocab *vocab, const char *bytes, size_t length, const char *expected,
                       size_t expected_length)
{
    int32_t *ids;
    size_t n, got = 0;
    char text[512];
    assert_int_equal(vocab_encode(vocab, bytes, length, false, true, &ids, &n, NULL), PS_OK);
    for (size_t i = 0; i < n; i++)
        got += vocab_piece(vocab, ids[i], i == 0, true, text + got, sizeof(text) - got);
    free(ids);
    assert_int_equal(got, expected_length);
    assert_memory_equal(text, expected, got);
}

static void any_bytes_encode_and_come_back(void **state)
{
    (void)state;
    struct fixture f, spm;
    begin_bpe(&f, "qwen2");
    build(&f, NULL, 0);
    rename(scratch_path("vocab.gguf"), scratch_path("bpe.gguf"));
    begin_spm(&spm);
    add_token(&spm, "▁", NORMAL, 0);
    build(&spm, NULL, 0);
    uint64_t random = 88172645463325252u;
    for (int round = 0; round < 400; round++) {
        char bytes[64];
        size_t length = next_random(&random) % sizeof(bytes);
        for (size_t i = 0; i < length; i++) {
            static const char common[] = "a \n0\xC3\xA9\xE4\xB8\xAD\xF0\x9F\x98\x80\xED\xF4";
            bytes[i] = round % 2 ? common[next_random(&random) % sizeof(common)] : (char)next_random(&random);
        }
        size_t expected_length;
        char *expected = readable(bytes, length, &expected_length);
        comes_back(f.vocab, bytes, length, expected, expected_length);
        comes_back(spm.vocab, expected, expected_length, expected, expected_length);
        free(expected);
    }
    end(&f);
    end(&spm);
}

/* A step that is quadratic in the length of a run does not end before the test runner's limit. */
static void long_runs_of_one_character_encode(void **state)
{
    (void)state;
    enum { LENGTH = 1 << THINNED(19, 14) };
    static const char *const pres[] = {"default", "deepseek-llm", "gpt-4o", "afmoe", "exaone-moe"};
    char *text = malloc(LENGTH);
    assert_non_null(text);
    for (size_t p = 0; p < sizeof(pres) / sizeof(pres[0]); p++) {
        struct fixture f;
        begin_bpe(&f, pres[p]);
        add_token(&f, "aa", NORMAL, 0);
        add_token(&f, "aaaa", NORMAL, 0);
        add_token(&f, "<<", USER_DEFINED, 0);
        const char *merges[] = {"a a", "aa aa"};
        build(&f, merges, 2);
        for (const char *c = "aA 1\n!<\x80"; *c; c++) {
            memset(text, *c, LENGTH);
            text[LENGTH - 1] = 'x';
            int32_t *ids;
            size_t n;
            assert_int_equal(vocab_encode(f.vocab, text, LENGTH, false, true, &ids, &n, NULL), PS_OK);
            assert_in_range(n, 1, 3 * LENGTH); /* a stray byte becomes the three of U+FFFD */
            free(ids);
        }
        end(&f);
    }
    free(text);
}

/* tests/data/pretokenize.txt: per line a name and the words, divided by U+00A6, that llama.cpp v0.5.0 makes of their whole. */
static void every_pattern_set_cuts_as_llama_cpp_does(void **state)
{
    (void)state;
    FILE *file = fopen(TEST_DATA_DIR "/pretokenize.txt", "rb");
    assert_non_null(file);
    char line[4096];
    uint32_t n_lines = 0;
    while (fgets(line, sizeof(line), file)) {
        char *words = strchr(line, ' ');
        assert_non_null(words);
        *words++ = 0;
        char text[2048];
        uint32_t ends[512], n_words = 0, length = 0;
        for (const char *c = words; *c != '\n'; c++) {
            if (strncmp(c, "\xC2\xA6", 2) == 0) {
                ends[n_words++] = length;
                c++;
            } else if (*c == '\\') {
                c++;
                text[length++] = *c == 'n' ? '\n' : *c == 'r' ? '\r' : '\t';
            } else {
                text[length++] = *c;
            }
        }
        ends[n_words++] = length;

        const struct pre_type *type = pre_type_find(line, strlen(line));
        assert_non_null(type);
        struct pretokenizer *pre;
        struct word_text got = {0};
        assert_int_equal(pretokenizer_new(&pre, type, NULL), PS_OK);
        assert_int_equal(pretokenizer_split(pre, text, length, &got, NULL), PS_OK);
        for (uint32_t i = 0; i < n_words && i < got.words.count; i++) {
            if (got.words.ends[i] != ends[i])
                fail_msg("%s: word %u ends at %u, not %u", line, i, got.words.ends[i], ends[i]);
        }
        assert_int_equal(got.words.count, n_words);
        word_text_deinit(&got);
        pretokenizer_free(pre);
        n_lines++;
    }
    fclose(file);
    assert_int_equal(n_lines, 27);
}

static void expect_refused(struct fixture *f, enum ps_status status, const char *what)
{
    struct ps_error err;
    enum ps_status got = try_build(f, &err);
    if (got != status || !strstr(err.message, what))
        fail_msg("status %d, '%s'; expected %d, '%s'", got, got ? err.message : "", status, what);
    assert_null(f->vocab);
    end(f);
}

static void unknown_models_and_pretokenizers_are_refused_by_name(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f, "bert");
    expect_refused(&f, PS_ERR_UNSUPPORTED, "'bert' is not handled: these are: gpt2, llama");
    begin_bpe(&f, "klingon");
    expect_refused(&f, PS_ERR_UNSUPPORTED, "'klingon' is not handled: these are: default, llama-bpe");
    begin_bpe(&f, "gpt-22"); /* no prefix match */
    expect_refused(&f, PS_ERR_UNSUPPORTED, "gpt-22");
}

static void wrong_arrays_are_refused(void **state)
{
    (void)state;
    static const int32_t numbers[4] = {1, 1, 1, 1};
    static const char *const strings[] = {"x y"};
    struct fixture f;
    begin(&f, "llama");
    expect_refused(&f, PS_ERR_FORMAT, "tokenizer.ggml.tokens: missing");
    begin(&f, "llama");
    gguf_writer_set_array(f.writer, "tokenizer.ggml.tokens", GGUF_INT32, numbers, 4);
    expect_refused(&f, PS_ERR_FORMAT, "tokenizer.ggml.tokens: not an array");
    begin(&f, "llama");
    gguf_writer_set_strings(f.writer, "tokenizer.ggml.tokens", strings, 0);
    expect_refused(&f, PS_ERR_FORMAT, "tokenizer.ggml.tokens");
    begin_bpe(&f, "qwen2");
    write_tokens(&f);
    expect_refused(&f, PS_ERR_FORMAT, "tokenizer.ggml.merges: missing");
    begin_bpe(&f, "qwen2");
    write_tokens(&f);
    gguf_writer_set_array(f.writer, "tokenizer.ggml.merges", GGUF_INT32, numbers, 4);
    expect_refused(&f, PS_ERR_FORMAT, "tokenizer.ggml.merges: not an array");
    begin_spm(&f);
    gguf_writer_set_strings(f.writer, "tokenizer.ggml.tokens", f.pointers, f.n);
    gguf_writer_set_array(f.writer, "tokenizer.ggml.token_type", GGUF_INT32, numbers, 4);
    expect_refused(&f, PS_ERR_FORMAT, "tokenizer.ggml.token_type: 4 elements for 259 tokens");
    begin_spm(&f);
    gguf_writer_set_strings(f.writer, "tokenizer.ggml.tokens", f.pointers, f.n);
    gguf_writer_set_string(f.writer, "tokenizer.ggml.scores", "none");
    expect_refused(&f, PS_ERR_FORMAT, "tokenizer.ggml.scores: not an array");
    begin_bpe(&f, "glm4");
    write_tokens(&f);
    gguf_writer_set_strings(f.writer, "tokenizer.ggml.merges", strings, 1);
    gguf_writer_set_bool(f.writer, "tokenizer.ggml.add_bos_token", true);
    expect_refused(&f, PS_ERR_FORMAT, "tokenizer.ggml.bos_token_id: missing");
}

static void odd_tokens_are_put_up_with(void **state)
{
    (void)state;
    struct fixture f;
    begin_spm(&f);
    add_token(&f, "", CONTROL, 0);
    add_token(&f, "", NORMAL, 0);
    add_token(&f, "twice", NORMAL, 1);
    add_token(&f, "twice", CONTROL, 1);
    add_token(&f, "<0xZZ>", BYTE, 0);
    add_token(&f, "x", BYTE, 0);
    add_token(&f, "y", 99, 0);
    add_token(&f, "z", -1, 0);
    size_t huge = 100000;
    char *text = malloc(huge + 1);
    assert_non_null(text);
    memset(text, 'h', huge);
    text[huge] = 0;
    f.pointers[f.n] = text;
    f.types[f.n] = NORMAL;
    f.scores[f.n++] = 0.0f / 1.0f;
    build(&f, NULL, 0);
    for (int32_t id = 0; id < (int32_t)f.n; id++) {
        char piece[16];
        size_t n = vocab_piece(f.vocab, id, true, true, piece, sizeof(piece));
        assert_true(n <= huge);
    }
    int32_t *ids;
    size_t n;
    assert_int_equal(vocab_encode(f.vocab, "twice", 5, true, true, &ids, &n, NULL), PS_OK);
    free(ids);
    assert_int_equal(vocab_encode(f.vocab, text, huge, true, true, &ids, &n, NULL), PS_OK);
    assert_true(n > 1);
    free(ids);
    free(text);
    end(&f);
}

static void a_model_without_text_has_ids_only(void **state)
{
    (void)state;
    for (int sized = 0; sized < 2; sized++) {
        struct fixture f;
        struct ps_error err;
        begin(&f, sized ? "no_vocab" : "none");
        if (sized)
            gguf_writer_set_u32(f.writer, "llama.vocab_size", 1000);
        assert_int_equal(try_build(&f, &err), PS_OK);
        assert_false(vocab_has_text(f.vocab));
        assert_int_equal(vocab_size(f.vocab), sized ? 1000 : 0);
        assert_int_equal(vocab_bos(f.vocab), -1);
        assert_int_equal(vocab_eos(f.vocab), -1);
        assert_false(vocab_is_end(f.vocab, 5));
        assert_int_equal(vocab_piece(f.vocab, 5, false, true, NULL, 0), 0);
        int32_t *ids = (int32_t *)1;
        size_t n = 1;
        assert_int_equal(vocab_encode(f.vocab, "a", 1, false, false, &ids, &n, &err), PS_ERR_UNSUPPORTED);
        assert_null(ids);
        assert_int_equal(n, 0);
        end(&f);
    }
}

/* Pushes text in pieces cut at every position given by the bits of mask. */
static size_t stream(const char *text, size_t length, uint64_t mask, char *out)
{
    struct utf8_stream s = {0};
    size_t n = 0, begin_at = 0;
    for (size_t i = 1; i <= length; i++) {
        if (i == length || mask >> i & 1) {
            n += utf8_stream_push(&s, text + begin_at, i - begin_at, out + n);
            begin_at = i;
        }
    }
    return n + utf8_stream_finish(&s, out + n);
}

static void utf8_stream_gives_whole_characters_wherever_pieces_are_cut(void **state)
{
    (void)state;
    static const char text[] = "aé中😀 ß\xF4\x8F\xBF\xBF\xED\x9F\xBF";
    uint64_t random = 1234567;
    for (int round = 0; round < 200; round++) {
        char out[3 * (sizeof(text) + 4)];
        size_t n = stream(text, sizeof(text) - 1, round ? next_random(&random) : UINT64_MAX, out);
        assert_int_equal(n, sizeof(text) - 1);
        assert_memory_equal(out, text, n);
    }
    struct utf8_stream s = {0};
    char out[32];
    assert_int_equal(utf8_stream_push(&s, "\xF0\x9F\x98", 3, out), 0); /* waits */
    assert_int_equal(utf8_stream_push(&s, "\x80", 1, out), 4);
}

static void utf8_stream_replaces_what_cannot_be_a_character(void **state)
{
    (void)state;
    /* Unicode standard, section 3.9: each maximal part of an ill-formed sequence becomes one U+FFFD; ? stands for it here */
    static const struct {
        const char *in, *out;
    } cases[] = {{"\x80", "?"},
                 {"a\xC3", "a?"},
                 {"\xC3z", "?z"},
                 {"\xC0\xAF", "??"},
                 {"\xE0\x80\x80", "???"},
                 {"\xED\xA0\x80", "???"},
                 {"\xF0\x80\x80\x80", "????"},
                 {"\xF4\x90\x80\x80", "????"},
                 {"\xF5\xFF", "??"},
                 {"\xF0\x9F\x98", "?"},
                 {"\xE4\xB8\xE4\xB8\xAD", "?中"},
                 {"\xF0\x9F\x98\xC3\xA9", "?é"}};
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        for (uint64_t mask = 0; mask < 16; mask++) {
            char out[64], shown[64];
            size_t n = stream(cases[c].in, strlen(cases[c].in), mask, out), to = 0;
            for (size_t i = 0; i < n; i++) {
                bool replaced = n - i >= 3 && memcmp(out + i, "\xEF\xBF\xBD", 3) == 0;
                shown[to++] = replaced ? '?' : out[i];
                i += replaced ? 2 : 0;
            }
            shown[to] = 0;
            assert_string_equal(shown, cases[c].out);
        }
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_make, scratch_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bpe_merges_in_order_of_rank),
        TEST(a_merge_to_an_unknown_token_falls_back_to_bytes),
        TEST(a_million_equal_merges_are_no_trap),
        TEST(ignore_merges_takes_a_word_that_is_a_token),
        TEST(gemma4_keeps_runs_of_newlines_and_plain_text),
        TEST(spm_merges_the_highest_score_first),
        TEST(spm_puts_a_space_in_front_of_text_and_takes_it_back),
        TEST(spm_without_byte_tokens_gives_unknown),
        TEST(special_tokens_are_found_longest_first),
        TEST(special_tokens_of_phi3_swallow_space),
        TEST(ends_are_known_by_key_and_by_name),
        TEST(bos_and_eos_follow_metadata_and_the_models_default),
        TEST(ids_out_of_range_leave_the_default),
        TEST(pieces_show_control_tokens_only_when_asked),
        TEST(piece_writes_no_more_than_it_may),
        TEST(any_bytes_encode_and_come_back),
        TEST(long_runs_of_one_character_encode),
        TEST(every_pattern_set_cuts_as_llama_cpp_does),
        TEST(unknown_models_and_pretokenizers_are_refused_by_name),
        TEST(wrong_arrays_are_refused),
        TEST(odd_tokens_are_put_up_with),
        TEST(a_model_without_text_has_ids_only),
        TEST(utf8_stream_gives_whole_characters_wherever_pieces_are_cut),
        TEST(utf8_stream_replaces_what_cannot_be_a_character),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
