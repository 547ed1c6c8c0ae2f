/* The pre-tokenizers by name. Names, patterns and flags: llama.cpp v0.5.0, src/llama-vocab.cpp (llm_tokenizer_bpe, load) and the
 * hand-written twins of some patterns in src/unicode.cpp, which are what it really runs; the models' tokenizer.json hold the
 * originals. Rewritten here only where that changes no match: white space is spelled out as a class, since PCRE2's \s differs
 * (U+180E); (?=\p{L})[^a-z] is the class [^a-z\P{L}], so that long runs need no stack; llama.cpp does not tell \p{Lu}, \p{Ll}...
 * from \p{L}, so they stand as \p{L}. */
#include "runtime/pretokenize.h"

#include <stdio.h>
#include <string.h>

/* Unicode White_Space, for use within a class. */
#define WS         "\\t-\\r \\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define SPACE      "[" WS "]"
#define NON_SPACE  "[^" WS "]"
#define SPACE_RUNS SPACE "+(?!" NON_SPACE ")|" SPACE "+"
#define SPACE_TAIL SPACE "*[\\r\\n]+|" SPACE_RUNS

#define CONTRACTION "(?:'[sStTmMdD]|'[rR][eE]|'[vV][eE]|'[lL][lL])"
#define LEAD        "[^\\r\\n\\p{L}\\p{N}]?"
#define WORD        LEAD "\\p{L}+"
#define OTHER       " ?[^" WS "\\p{L}\\p{N}]+"
/* o200k: a word starts in capitals and goes on in small letters; only ASCII case is told apart. */
#define CASED_WORD(suffix)                                                                                   \
    LEAD "[^a-z\\P{L}]*[^A-Z\\P{L}]+" suffix "|" LEAD "[^a-z\\P{L}]+[^A-Z\\P{L}]*" suffix
#define DIGITS_3      "\\p{N}{1,3}"
#define KANA_HAN      "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{30FF}]+"
#define ASCII_PUNCT   "[!-/:-@\\[-`{-~]"
#define PUNCT_OR_WORD ASCII_PUNCT "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+"

#define GPT2           "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" OTHER "|" SPACE_RUNS
#define LLAMA3         CONTRACTION "|" WORD "|" DIGITS_3 "|" OTHER "[\\r\\n]*|" SPACE_TAIL
#define QWEN2          CONTRACTION "|" WORD "|\\p{N}|" OTHER "[\\r\\n]*|" SPACE_TAIL
#define LINES          "[^\\n]+|\\n+"
#define MARKED_WORD    LEAD "[\\p{L}\\p{M}]+" CONTRACTION "?"
#define SENTENCE_WORDS " ?[^" WS "(|.,!?\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+"

/* U+0800..U+4E00 without its white space, and Hangul: what the DeepSeek tokenizers call CJK. */
#define DEEPSEEK_CJK                                                                                         \
    "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}"        \
    "\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"

/* Cased letters of the alphabets with two cases. */
#define DEEPSEEK_LETTERS                                                                                     \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}"          \
    "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}\\x{388}-\\x{38A}"   \
    "\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}"          \
    "\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}"        \
    "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}"        \
    "\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{"     \
    "1F7D}"                                                                                                  \
    "\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{"    \
    "1FD3}"                                                                                                  \
    "\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"         \
    "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}\\x{212A}-\\x{212D}"          \
    "\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}"          \
    "\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}"         \
    "\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}"        \
    "\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}"      \
    "\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{"    \
    "118DF}"                                                                                                 \
    "\\x{1E900}-\\x{1E943}"

/* For use within a class: the ranges of llama.cpp's unicode_cpt_is_han. */
#define HAN                                                                                                  \
    "\\x{4E00}-\\x{9FFF}\\x{3400}-\\x{4DBF}\\x{20000}-\\x{2A6DF}\\x{2A700}-\\x{2EBEF}\\x{F900}-\\x{FAFF}"    \
    "\\x{2F800}-\\x{2FA1F}"

/* Scripts written without spaces; llama.cpp's text has U+8C48 where U+F900 was meant. */
#define AFMOE_SCRIPTS                                                                                        \
    "[\\x{4E00}-\\x{9FFF}\\x{3400}-\\x{4DBF}\\x{8C48}-\\x{FAFF}\\x{3040}-\\x{30FF}\\x{FF65}-\\x{FF9F}"       \
    "\\x{2F00}-\\x{2FDF}\\x{E40}-\\x{EFF}\\x{1780}-\\x{17FF}\\x{1000}-\\x{109F}\\x{AA60}-\\x{AA7F}"          \
    "\\x{A9E0}-\\x{A9FF}\\x{AC00}-\\x{D7AF}\\x{1100}-\\x{11FF}]+"

#define YOUTU_PUNCT                                                                                          \
    "\\x{FF01}\\x{2026}\\x{201C}\\x{201D}\\x{2018}\\x{2019}\\x{2014}"                                        \
    "\\x{FF1A}\\x{FF1B}\\x{FF0C}\\x{3001}-\\x{303F}\\x{FE30}-\\x{FE4F}"

#define PATTERNS(name, ...) static const char *const name[PRE_MAX_PATTERNS + 1] = {__VA_ARGS__}

PATTERNS(default_patterns, "[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]");
PATTERNS(gpt2, GPT2);
PATTERNS(starcoder, "\\p{N}", GPT2);
PATTERNS(falcon, "[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]");
PATTERNS(llama3, LLAMA3);
PATTERNS(qwen2, QWEN2);
PATTERNS(laguna, LINES, QWEN2);
PATTERNS(qwen35,
         CONTRACTION "|" LEAD "[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" SPACE_TAIL);
PATTERNS(ufakzeka, WORD "|\\p{N}|" OTHER "[\\r\\n]*|" SPACE_TAIL);
PATTERNS(seed_coder, CONTRACTION "|" WORD "|\\p{N}| ?[^" WS "\\p{L}\\p{N}]+|" SPACE_TAIL);
PATTERNS(bailingmoe, "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|" WORD "|\\p{N}|" OTHER "[\\r\\n]*|" SPACE
                     "*[\\r\\n]|" SPACE_RUNS);
PATTERNS(minicpm5, DIGITS_3, CONTRACTION "|" WORD "|\\p{N}+|" OTHER "[\\r\\n]*|" SPACE_TAIL);
PATTERNS(exaone_moe, CONTRACTION "|" LEAD "\\p{L}(?:[\\p{L}\\p{M}]++| \\p{L})*+|\\p{N}|" OTHER
                                 "[\\r\\n/]?|" SPACE "*[\\r\\n]|" SPACE_RUNS);
PATTERNS(gpt4o, CASED_WORD(CONTRACTION "?") "|" DIGITS_3 "|" OTHER "[\\r\\n/]*|" SPACE_TAIL);
PATTERNS(tekken, CASED_WORD("") "|\\p{N}|" OTHER "[\\r\\n/]*|" SPACE_TAIL);
PATTERNS(tiny_aya, PRE_DIGIT_GROUPS, MARKED_WORD "|" DIGITS_3 "|" OTHER "[\\r\\n/]*|" SPACE_TAIL);
PATTERNS(youtu,
         "[\\x{AC00}-\\x{D7A3}\\x{3131}-\\x{318E}]+|[" YOUTU_PUNCT "]+|[\\x{3105}-\\x{312F}]+|" KANA_HAN,
         MARKED_WORD "|\\p{N}|" OTHER "[\\r\\n/]*|" SPACE_TAIL);
PATTERNS(kimi_k2,
         "[" HAN "]+|" LEAD "[^\\P{L}" HAN "]+" CONTRACTION "?|" DIGITS_3 "|" OTHER "[\\r\\n]*|" SPACE_TAIL);
/* The trailing-space pattern looks behind so that a long run of spaces elsewhere is passed over in one step. */
PATTERNS(deepseek_llm, "[\\r\\n]", SPACE "?[" DEEPSEEK_LETTERS "]+",
         SPACE "?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3001}\\x{3002}]+",
         "(?<!" SPACE ")" SPACE "+$", DEEPSEEK_CJK, "\\p{N}+");
PATTERNS(deepseek_coder, "[\\r\\n]", SPACE "?\\p{L}+", SPACE "?\\p{P}+", DEEPSEEK_CJK, "\\p{N}");
PATTERNS(deepseek_v3, DIGITS_3, KANA_HAN, PUNCT_OR_WORD "[\\r\\n]*|" SPACE_TAIL);
PATTERNS(spark2_5, DIGITS_3, KANA_HAN, PUNCT_OR_WORD "|[\\r\\n]|" SPACE_RUNS, "\\p{N}");
PATTERNS(afmoe, PRE_DIGIT_GROUPS, AFMOE_SCRIPTS, PUNCT_OR_WORD "[\\r\\n]*|" SPACE_TAIL);
PATTERNS(poro, SENTENCE_WORDS);
PATTERNS(viking, SENTENCE_WORDS, "\\p{N}");
PATTERNS(chameleon, "<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", "[\\t\\n]|    |  ", "\\p{N}",
         "[\\p{P}!-/:-@\\[-`{-~]", GPT2);
PATTERNS(lines, LINES);

static const struct pre_type pre_types[] = {
    {.names = {"default"}, .patterns = default_patterns},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
     .patterns = llama3,
     .ignore_merges = true,
     .adds_bos = true},
    {.names = {"qwen2", "deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan", "solar-open",
               "grok-2"},
     .patterns = qwen2},
    {.names = {"qwen35"}, .patterns = qwen35},
    {.names = {"laguna"}, .patterns = laguna},
    {.names = {"ufakzeka"}, .patterns = ufakzeka},
    {.names = {"gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum", "exaone4", "mpt", "olmo", "jais",
               "trillion", "granite-docling"},
     .patterns = gpt2},
    {.names = {"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"}, .patterns = gpt4o},
    {.names = {"tekken"}, .patterns = tekken, .ignore_merges = true, .adds_bos = true},
    {.names = {"glm4", "chatglm-bpe"}, .patterns = llama3, .no_default_bos = true},
    {.names = {"dbrx", "smaug-bpe"}, .patterns = llama3},
    {.names = {"deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"}, .patterns = deepseek_v3},
    {.names = {"deepseek-llm"}, .patterns = deepseek_llm},
    {.names = {"deepseek-coder"}, .patterns = deepseek_coder},
    {.names = {"kimi-k2"}, .patterns = kimi_k2, .may_lack_merges = true},
    {.names = {"bailingmoe", "bailingmoe2", "llada-moe"}, .patterns = bailingmoe},
    {.names = {"seed-coder"}, .patterns = seed_coder},
    {.names = {"exaone-moe"}, .patterns = exaone_moe},
    {.names = {"afmoe"}, .patterns = afmoe},
    {.names = {"tiny_aya", "cohere2moe"}, .patterns = tiny_aya},
    {.names = {"youtu"}, .patterns = youtu, .ignore_merges = true},
    {.names = {"spark2_5"}, .patterns = spark2_5},
    {.names = {"minicpm5"}, .patterns = minicpm5, .ignore_merges = true},
    {.names = {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"},
     .patterns = starcoder},
    {.names = {"falcon"}, .patterns = falcon},
    {.names = {"chameleon"}, .patterns = chameleon, .adds_bos = true},
    {.names = {"poro-chat", "bloom", "gpt3-finnish"}, .patterns = poro},
    {.names = {"viking"}, .patterns = viking},
    {.names = {"sarvam-moe"}, .patterns = lines, .raw_utf8 = true},
    {.names = {"gemma4"}, .patterns = lines, .raw_utf8 = true, .newline_tokens = true, .always_bos = true},
};

enum { N_PRE_TYPES = sizeof(pre_types) / sizeof(pre_types[0]) };

const struct pre_type *pre_type_find(const char *name, size_t length)
{
    for (int i = 0; i < N_PRE_TYPES; i++) {
        for (const char *const *known = pre_types[i].names; *known; known++) {
            if (strlen(*known) == length && memcmp(*known, name, length) == 0)
                return &pre_types[i];
        }
    }
    return NULL;
}

void pre_type_list(char *out, size_t size)
{
    size_t used = 0;
    for (int i = 0; i < N_PRE_TYPES; i++) {
        for (const char *const *name = pre_types[i].names; *name; name++) {
            size_t left = size - used;
            if (strlen(*name) + sizeof(", , ...") > left) {
                snprintf(out + used, left, ", ...");
                return;
            }
            used += (size_t)snprintf(out + used, left, "%s%s", used > 0 ? ", " : "", *name);
        }
    }
}
