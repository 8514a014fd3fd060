package config

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// Main is what both programs do around their Run: -h, the settings, the log,
// the signals. It returns the exit status: 0 after a signal, 2 for wrong
// settings, 1 for anything else.
func Main[C any](about string, args []string, out, errOut io.Writer, log func(*C) (level, format string),
	run func(ctx context.Context, c C, log *slog.Logger) error) int {
	var c C
	if len(args) > 0 {
		if slices.Contains([]string{"-h", "--help", "-help", "help"}, args[0]) {
			Usage(out, about, &c)
			return 0
		}
		fmt.Fprintf(errOut, "unknown argument %q: settings are environment variables, -h lists them\n", args[0])
		return 2
	}
	if err := Load(&c); err != nil {
		fmt.Fprintf(errOut, "wrong settings:\n%v\n", err)
		return 2
	}
	level, format := log(&c)
	l, err := Logger(errOut, level, format)
	if err != nil {
		fmt.Fprintf(errOut, "wrong settings:\n%v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, c, l); err != nil {
		fmt.Fprintf(errOut, "%v\n", err)
		if isSettings(err) {
			return 2
		}
		return 1
	}
	return 0
}

// Logger makes the log of LOG_LEVEL and LOG_FORMAT; empty means their defaults.
func Logger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	switch level {
	case "debug":
		l = slog.LevelDebug
	case "", "info":
	case "warn":
		l = slog.LevelWarn
	case "error":
		l = slog.LevelError
	default:
		return nil, fmt.Errorf("DIALRING_LOG_LEVEL is %q; it is one of debug, info, warn, error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("DIALRING_LOG_FORMAT is %q; it is one of text, json", format)
}
