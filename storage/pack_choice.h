/* Which codec each kind of tensor is packed with: measured on samples of the model, on the machine that packs.
 *
 * A kind is a part of an expert in one block type: all layers in which that part has the type share its codec. */
#ifndef PENSTOCK_STORAGE_PACK_CHOICE_H
#define PENSTOCK_STORAGE_PACK_CHOICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/chunk_codec.h"
#include "storage/shard_parts.h"
#include "storage/status.h"

struct pack_sample {
    const uint8_t *data; /* borrowed */
    uint64_t bytes;      /* whole strides; best some MB: an expert's slice, or the start of one */
};

struct pack_kind {
    enum shard_part part;
    uint32_t type;         /* ggml type id */
    uint64_t model_bytes;  /* of all experts together */
    uint64_t expert_bytes; /* of an expert that it is part of, all parts */
    const struct pack_sample *samples;
    uint32_t n_samples;
};

struct pack_figures {
    bool measured;      /* false: the codec cannot be had for the stride */
    double ratio;       /* stored / unpacked bytes */
    double decode_rate; /* unpacked bytes/s of one thread */
    double encode_rate;
    double gain; /* time to read / time to read and unpack; set by pack_choose */
};

struct pack_choice {
    enum shard_part part;
    uint32_t type;
    uint64_t model_bytes, expert_bytes;
    enum chunk_codec codec;
    struct pack_figures figures
        [CHUNK_N_CODECS]; /* CHUNK_RAW's: a copy, as chunks stored as they are take in a packed layer */
};

struct pack_machine {
    double read_rate;   /* bytes/s of the drives that will be read */
    uint32_t n_cores;   /* that compute and unpack */
    uint32_t n_threads; /* that unpack, at most */
};

enum pack_goal {
    PACK_FASTEST,  /* compressed only where that is faster by PACK_GAIN_PERCENT */
    PACK_SMALLEST, /* whatever it costs in time, where that much is saved */
};
enum { PACK_GAIN_PERCENT = 3 };

/* Fills all of *choice but codec and gains. Takes about a second for 10 MB of samples and level 3. PS_ERR_ARGUMENT: a level that zstd
 * lacks, no sample, a sample that is not whole strides; PS_ERR_NOMEM. */
enum ps_status pack_measure(struct pack_choice *choice, const struct pack_kind *kind, int level,
                            struct ps_error *err);
/* Sets codecs and gains of a model's kinds, measured before. */
void pack_choose(struct pack_choice *choices, uint32_t n, const struct pack_machine *machine,
                 enum pack_goal goal);
/* What all kinds together gain with the codecs chosen; 1: nothing is compressed. */
double pack_gain(const struct pack_choice *choices, uint32_t n, const struct pack_machine *machine);

/* An array with an object for each kind. Returns the length without the ending 0, as snprintf does. */
size_t pack_choice_json(const struct pack_choice *choices, uint32_t n, char *out, size_t room);

#endif
