/* Randomness of the operating system, as decided by HOLDFAST_SIM_RANDOM: preloaded into the simulation, whose hash maps,
 * ids and dice are then the same in every run. Each thread has a row of its own, named by the thread. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/types.h>

static __thread uint64_t state;
static __thread int begun;

static uint64_t next(void) {
    if (!begun) {
        const char *seed = getenv("HOLDFAST_SIM_RANDOM");
        char name[17] = {0};
        prctl(PR_GET_NAME, name, 0, 0, 0);
        state = seed ? strtoull(seed, NULL, 10) : 0;
        for (const char *at = name; *at; at++)
            state = (state ^ (unsigned char)*at) * 0x100000001b3ULL;
        begun = 1;
    }
    uint64_t z = (state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

ssize_t getrandom(void *buffer, size_t length, unsigned int flags) {
    (void)flags;
    unsigned char *out = buffer;
    for (size_t at = 0; at < length;) {
        uint64_t word = next();
        for (int byte = 0; byte < 8 && at < length; byte++, at++, word >>= 8)
            out[at] = word & 0xff;
    }
    return (ssize_t)length;
}

int getentropy(void *buffer, size_t length) {
    getrandom(buffer, length, 0);
    return 0;
}
