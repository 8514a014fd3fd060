package config

import (
	"cmp"
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"unicode"
)

// exitSettings is EX_CONFIG of sysexits.h. Not 2: that is how Go ends a program that panics,
// and whoever starts it again must not take one for the other.
const exitSettings = 78

// version is set where the sources are no module of a version, as in releases and the image:
// -ldflags "-X github.com/dialring/dialring/internal/config.version=1.2.3".
var version string

// built says of what this program was built: its version, the commit if Go knows it, Go's version,
// and for which platform.
func built(info *debug.BuildInfo) string {
	v, commit := "(devel)", ""
	if info != nil {
		v = cmp.Or(info.Main.Version, v)
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = " " + s.Value[:min(12, len(s.Value))] + commit
			case s.Key == "vcs.modified" && s.Value == "true":
				commit += " (modified)"
			}
		}
	}
	return fmt.Sprintf("%s%s %s %s/%s", cmp.Or(version, v), commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// Main is what both programs do around their Run: -h, -version, the settings, the log,
// the signals. It returns the exit status: 0 after a signal, 78 for wrong
// settings, 1 for anything else.
func Main[C any](about string, args []string, out, errOut io.Writer, log func(*C) (level, format string),
	run func(ctx context.Context, c C, log *slog.Logger) error) int {
	var c C
	if len(args) > 0 {
		if slices.Contains([]string{"-h", "--help", "-help", "help"}, args[0]) {
			Usage(out, about, &c)
			return 0
		}
		if slices.Contains([]string{"-version", "--version", "version"}, args[0]) {
			name, _, _ := strings.Cut(about, " ")
			info, _ := debug.ReadBuildInfo()
			fmt.Fprintln(out, name, built(info))
			return 0
		}
		fmt.Fprintf(errOut, "unknown argument %q: settings are environment variables, -h lists them\n", args[0])
		return exitSettings
	}
	if err := Load(&c); err != nil {
		fmt.Fprintf(errOut, "wrong settings:\n%v\n", err)
		return exitSettings
	}
	level, format := log(&c)
	l, err := Logger(errOut, level, format)
	if err != nil {
		fmt.Fprintf(errOut, "wrong settings:\n%v\n", err)
		return exitSettings
	}
	// The standard log is nobody's here but net/http's client's, which shows in it what a server
	// sends unasked: the rest of a webhook's answer that was longer than it said is a payload.
	stdlog.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, c, l); err != nil {
		fmt.Fprintf(errOut, "%v\n", err)
		if isSettings(err) {
			return exitSettings
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
		o.ReplaceAttr = visible
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("DIALRING_LOG_FORMAT is %q; it is one of text, json", format)
}

// visible escapes what an id of a user may have in it to make a line look like another
// one: marks that change the direction or the end of a line, and, of what is not an id yet,
// controls that JSON does not escape, which terminals obey. The text form quotes them itself.
func visible(_ []string, a slog.Attr) slog.Attr {
	s := ""
	switch v := a.Value; v.Kind() {
	case slog.KindString:
		s = v.String()
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			s = err.Error()
		}
	}
	if !strings.ContainsFunc(s, hidden) {
		return a
	}
	var b strings.Builder
	for _, r := range s {
		if hidden(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	a.Value = slog.StringValue(b.String())
	return a
}

func hidden(r rune) bool {
	return unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) || r >= 0x7f && unicode.IsControl(r)
}
