/* Choice of codecs: what a codec saves of reading against what it takes of computing.
 *
 * Time for a byte (unpacked), with r = ratio / read rate and u = 1 / decode rate:
 *     max(r, u / threads) + u * CHUNK_BYTES / expert's bytes + u / cores * UNHIDDEN
 * Unpacking overlaps with reading, chunk by chunk, except the last chunk of an expert. threads is what the unpacker may use,
 * yet at most half the cores: the others compute, and two threads of one core are not two. How much of the unpacking
 * displaces computing is not known when packing: none of it while all wait for the drive, all of it where experts that
 * are in memory are computed meanwhile. Half is charged. So at 1 GB/s and with two cores, BF16 (0.66 at 4 GB/s) is predicted to gain
 * 1.37 where 1.5 is possible, and Q4_K (0.955 at 5 GB/s) is left alone: 4 % are not worth the cores. With the 3 % asked for in
 * addition, what is kept had to be mispredicted by a lot to be slower than plain. */
#include "storage/pack_choice.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "storage/gguf.h"

enum { REPEATS = 5 };
static const double UNHIDDEN = 0.5;

/* ---- measuring ---- */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The samples as chunks, and memory for what becomes of them. */
struct bench {
    const struct pack_kind *kind;
    uint32_t stride, chunk_bytes;
    uint64_t bytes;
    uint8_t *packed, *unpacked; /* [bytes], chunk after chunk at its offset in the samples */
    uint32_t *stored;           /* [n_chunks]; 0: as it is */
    struct chunk_encoder *encoder;
    struct chunk_decoder *decoder;
};

static void bench_deinit(struct bench *bench)
{
    free(bench->packed);
    free(bench->unpacked);
    free(bench->stored);
    chunk_encoder_free(bench->encoder);
    chunk_decoder_free(bench->decoder);
}

static enum ps_status bench_init(struct bench *bench, const struct pack_kind *kind, int level,
                                 struct ps_error *err)
{
    const struct gguf_type_info *type = gguf_type_find(kind->type);
    if (!type)
        return ps_error_set(err, PS_ERR_ARGUMENT, "samples to pack: unknown block type %u", kind->type);
    *bench = (struct bench){.kind = kind, .stride = type->bytes};
    bench->chunk_bytes = CHUNK_BYTES / type->bytes * type->bytes;
    uint64_t n_chunks = 0;
    for (uint32_t i = 0; i < kind->n_samples; i++) {
        if (kind->samples[i].bytes == 0 || kind->samples[i].bytes % type->bytes != 0)
            return ps_error_set(err, PS_ERR_ARGUMENT,
                                "sample %u to pack: %llu bytes are not whole blocks of %s", i,
                                (unsigned long long)kind->samples[i].bytes, type->name);
        bench->bytes += kind->samples[i].bytes;
        n_chunks += (kind->samples[i].bytes - 1) / bench->chunk_bytes + 1;
    }
    if (bench->bytes == 0)
        return ps_error_set(err, PS_ERR_ARGUMENT, "no samples of %s to pack", type->name);
    if (!chunk_level_valid(level))
        return ps_error_set(err, PS_ERR_ARGUMENT, "zstd level %d: there is none", level);
    bench->packed = malloc(bench->bytes);
    bench->unpacked = malloc(bench->bytes);
    bench->stored = calloc(n_chunks, sizeof(*bench->stored));
    bench->encoder = chunk_encoder_new(level);
    bench->decoder = chunk_decoder_new();
    if (bench->packed && bench->unpacked && bench->stored && bench->encoder && bench->decoder) {
        /* So that the first pass does not pay for page faults. */
        memset(bench->packed, 0, bench->bytes);
        memset(bench->unpacked, 0, bench->bytes);
        return PS_OK;
    }
    bench_deinit(bench);
    return ps_error_set(err, PS_ERR_NOMEM, "samples to pack: no memory for %llu bytes",
                        (unsigned long long)bench->bytes);
}

/* A walk over the chunks of all samples. */
struct chunk_walk {
    uint32_t sample, index, bytes;
    uint64_t at, in_sample; /* of all samples; of this one */
};

static bool next_chunk(const struct bench *bench, struct chunk_walk *walk)
{
    walk->index += walk->bytes > 0;
    walk->at += walk->bytes;
    walk->in_sample += walk->bytes;
    if (walk->in_sample == bench->kind->samples[walk->sample].bytes) {
        walk->sample++;
        walk->in_sample = 0;
    }
    if (walk->sample == bench->kind->n_samples)
        return false;
    uint64_t left = bench->kind->samples[walk->sample].bytes - walk->in_sample;
    walk->bytes = left < bench->chunk_bytes ? (uint32_t)left : bench->chunk_bytes;
    return true;
}

static const uint8_t *chunk_data(const struct bench *bench, const struct chunk_walk *walk)
{
    return bench->kind->samples[walk->sample].data + walk->in_sample;
}

/* Returns the bytes stored, with the size before each chunk. */
static uint64_t encode_all(struct bench *bench, enum chunk_codec codec)
{
    uint64_t stored = 0;
    for (struct chunk_walk walk = {0}; next_chunk(bench, &walk);) {
        const uint8_t *data = chunk_data(bench, &walk);
        uint32_t bytes = codec == CHUNK_RAW ? 0
                                            : chunk_encode(bench->encoder, codec, bench->stride, data,
                                                           walk.bytes, bench->packed + walk.at);
        if (bytes == 0)
            memcpy(bench->packed + walk.at, data, walk.bytes);
        bench->stored[walk.index] = bytes;
        stored += (bytes > 0 ? bytes : walk.bytes) + sizeof(uint32_t);
    }
    return stored;
}

static bool decode_all(struct bench *bench, enum chunk_codec codec)
{
    bool ok = true;
    for (struct chunk_walk walk = {0}; next_chunk(bench, &walk);) {
        const uint8_t *from = bench->packed + walk.at;
        uint8_t *to = bench->unpacked + walk.at;
        if (bench->stored[walk.index] == 0)
            memmove(to, from, walk.bytes);
        else
            ok = ok && chunk_decode(bench->decoder, codec, bench->stride, from, bench->stored[walk.index], to,
                                    walk.bytes);
    }
    return ok;
}

static bool came_back(const struct bench *bench)
{
    for (struct chunk_walk walk = {0}; next_chunk(bench, &walk);) {
        if (memcmp(bench->unpacked + walk.at, chunk_data(bench, &walk), walk.bytes) != 0)
            return false;
    }
    return true;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct pack_figures measure_codec(struct bench *bench, enum chunk_codec codec)
{
    struct pack_figures figures = {0};
    double start = seconds(), took[REPEATS];
    uint64_t stored = encode_all(bench, codec);
    double encoding = seconds() - start;
    for (int i = 0; i < REPEATS; i++) {
        start = seconds();
        if (!decode_all(bench, codec))
            return figures;
        took[i] = seconds() - start;
    }
    if (!came_back(bench))
        return figures;
    qsort(took, REPEATS, sizeof(took[0]), by_value);
    const double shortest = 1e-9; /* the clock's step */
    double bytes = (double)bench->bytes, decoding = took[REPEATS / 2];
    return (struct pack_figures){
        .measured = true,
        .ratio = codec == CHUNK_RAW ? 1 : (double)stored / bytes,
        .decode_rate = bytes / (decoding > shortest ? decoding : shortest),
        .encode_rate = bytes / (encoding > shortest ? encoding : shortest),
    };
}

enum ps_status pack_measure(struct pack_choice *choice, const struct pack_kind *kind, int level,
                            struct ps_error *err)
{
    struct bench bench = {0};
    enum ps_status status = bench_init(&bench, kind, level, err);
    if (status != PS_OK)
        return status;
    *choice = (struct pack_choice){.part = kind->part,
                                   .type = kind->type,
                                   .model_bytes = kind->model_bytes,
                                   .expert_bytes = kind->expert_bytes};
    for (enum chunk_codec codec = CHUNK_RAW; codec < CHUNK_N_CODECS; codec++) {
        if (chunk_codec_takes(codec, bench.stride))
            choice->figures[codec] = measure_codec(&bench, codec);
    }
    bench_deinit(&bench);
    return PS_OK;
}

/* ---- choosing ---- */

/* Seconds for a byte to be read and unpacked. */
static double byte_time(const struct pack_choice *choice, const struct pack_figures *figures,
                        const struct pack_machine *machine)
{
    double cores = machine->n_cores > 1 ? machine->n_cores : 1;
    double threads = cores > 1 ? (double)(machine->n_cores / 2) : 1;
    if (machine->n_threads > 0 && threads > machine->n_threads)
        threads = machine->n_threads;
    double read = figures->ratio / machine->read_rate, unpack = 1 / figures->decode_rate;
    double last = CHUNK_BYTES < choice->expert_bytes ? (double)CHUNK_BYTES / (double)choice->expert_bytes : 1;
    double slower = read > unpack / threads ? read : unpack / threads;
    return slower + unpack * last + unpack / cores * UNHIDDEN;
}

static bool enough(double gain)
{
    return gain >= 1 + PACK_GAIN_PERCENT / 100.0;
}

static void choose_one(struct pack_choice *choice, const struct pack_machine *machine, enum pack_goal goal)
{
    double best = 1;
    choice->codec = CHUNK_RAW;
    choice->figures[CHUNK_RAW].gain = 1;
    for (enum chunk_codec codec = CHUNK_RAW + 1; codec < CHUNK_N_CODECS; codec++) {
        struct pack_figures *figures = &choice->figures[codec];
        if (!figures->measured)
            continue;
        figures->gain = 1 / machine->read_rate / byte_time(choice, figures, machine);
        double worth = goal == PACK_FASTEST ? figures->gain : 1 / figures->ratio;
        if (enough(worth) && worth > best) {
            best = worth;
            choice->codec = codec;
        }
    }
}

double pack_gain(const struct pack_choice *choices, uint32_t n, const struct pack_machine *machine)
{
    double plain = 0, packed = 0;
    bool compressed = false;
    for (uint32_t i = 0; i < n; i++) {
        double bytes = (double)choices[i].model_bytes;
        compressed = compressed || choices[i].codec != CHUNK_RAW;
        plain += bytes / machine->read_rate;
        packed += bytes * byte_time(&choices[i], &choices[i].figures[choices[i].codec], machine);
    }
    return compressed && packed > 0 ? plain / packed : 1;
}

void pack_choose(struct pack_choice *choices, uint32_t n, const struct pack_machine *machine,
                 enum pack_goal goal)
{
    for (uint32_t i = 0; i < n; i++)
        choose_one(&choices[i], machine, goal);
    /* A small kind may be worth it and the layer not: its other parts are then copied. */
    if (goal == PACK_FASTEST && !enough(pack_gain(choices, n, machine))) {
        for (uint32_t i = 0; i < n; i++)
            choices[i].codec = CHUNK_RAW;
    }
}

/* ---- telling ---- */

struct text {
    char *out;
    size_t room, length;
};

__attribute__((format(printf, 2, 3))) static void append(struct text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    bool fits = text->length < text->room;
    int n = vsnprintf(fits ? text->out + text->length : NULL, fits ? text->room - text->length : 0, format,
                      arguments);
    va_end(arguments);
    text->length += n > 0 ? (size_t)n : 0;
}

size_t pack_choice_json(const struct pack_choice *choices, uint32_t n, char *out, size_t room)
{
    struct text text = {out, room, 0};
    append(&text, "[");
    for (uint32_t i = 0; i < n; i++) {
        const struct pack_choice *choice = &choices[i];
        append(&text, "%s{\"part\":\"%s\",\"type\":\"%s\",\"bytes\":%llu,\"codec\":\"%s\",\"codecs\":{",
               i ? "," : "", shard_part_name(choice->part), gguf_type_find(choice->type)->name,
               (unsigned long long)choice->model_bytes, chunk_codec_name(choice->codec));
        const char *comma = "";
        for (uint32_t codec = 0; codec < CHUNK_N_CODECS; codec++) {
            const struct pack_figures *figures = &choice->figures[codec];
            if (!figures->measured)
                continue;
            append(
                &text,
                "%s\"%s\":{\"ratio\":%.4f,\"decode_mb_s\":%.0f,\"encode_mb_s\":%.0f,\"predicted_gain\":%.3f}",
                comma, chunk_codec_name(codec), figures->ratio, figures->decode_rate / 1e6,
                figures->encode_rate / 1e6, figures->gain);
            comma = ",";
        }
        append(&text, "}}");
    }
    append(&text, "]");
    return text.length;
}
