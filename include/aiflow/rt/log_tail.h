/* The newest kilobytes of DPDK's log, for error messages. Any thread may write. */
#ifndef AIFLOW_LOG_TAIL_H
#define AIFLOW_LOG_TAIL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define AF_LOG_BYTES 16384u

struct af_log {
	pthread_mutex_t lock; /* guards all of it */
	uint64_t written;     /* bytes so far; the ring has the newest AF_LOG_BYTES of them */
	int echo;             /* also write to stderr */
	char ring[AF_LOG_BYTES];
};

static inline ssize_t
af_log_write(void *cookie, const char *text, size_t size)
{
	struct af_log *log = (struct af_log *)cookie;

	pthread_mutex_lock(&log->lock);
	for (size_t i = 0; i < size; i++)
		log->ring[(log->written + i) % AF_LOG_BYTES] = text[i];
	log->written += size;
	if (log->echo && write(STDERR_FILENO, text, size) < 0)
		log->echo = 0; /* stderr is closed */
	pthread_mutex_unlock(&log->lock);
	return (ssize_t)size;
}

static inline FILE *
af_log_open(struct af_log *log, int echo)
{
	cookie_io_functions_t functions = {.write = af_log_write};
	FILE *stream;

	pthread_mutex_init(&log->lock, NULL);
	log->echo = echo;
	stream = fopencookie(log, "w", functions);
	if (stream != NULL)
		setvbuf(stream, NULL, _IOLBF, 1024);
	return stream;
}

/* Redirect stderr to `stream`. glibc lets programs assign it; file descriptor 2 does not change. Returns the stream
 * before; NULL changes nothing. */
static inline FILE *
af_log_stderr(FILE *stream)
{
	FILE *before = stderr;

#ifdef __GLIBC__
	if (stream != NULL)
		stderr = stream;
#endif
	return before;
}

/* Copy the bytes since `mark` to `out`, at most AF_LOG_BYTES, and move `mark` behind them. Returns their number. */
static inline size_t
af_log_take(struct af_log *log, uint64_t *mark, char *out)
{
	size_t size;

	pthread_mutex_lock(&log->lock);
	size = log->written - *mark > AF_LOG_BYTES ? AF_LOG_BYTES : (size_t)(log->written - *mark);
	for (size_t i = 0; i < size; i++)
		out[i] = log->ring[(log->written - size + i) % AF_LOG_BYTES];
	*mark = log->written;
	pthread_mutex_unlock(&log->lock);
	return size;
}

/* As af_log_take, for a mark that stays. */
static inline size_t
af_log_since(struct af_log *log, uint64_t mark, char *out)
{
	return af_log_take(log, &mark, out);
}

#endif
