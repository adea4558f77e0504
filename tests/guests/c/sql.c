// SQLite's library round a small shell: `FILE SQL...` runs each statement and prints the rows.
#include <stdio.h>
#include "sqlite3.h"

static int print(void *unused, int count, char **values, char **names) {
    for (int i = 0; i < count; i++) printf("%s%s", i ? "|" : "", values[i] ? values[i] : "");
    printf("\n");
    return 0;
}

int main(int argc, char **argv) {
    sqlite3 *db;
    char *error = NULL;
    if (argc < 3 || sqlite3_open(argv[1], &db)) return fprintf(stderr, "sql: %s\n", argc < 3 ? "FILE SQL..." : sqlite3_errmsg(db)), 2;
    for (int i = 2; i < argc; i++)
        if (sqlite3_exec(db, argv[i], print, NULL, &error)) return fprintf(stderr, "sql: %s\n", error), 1;
    return sqlite3_close(db);
}
