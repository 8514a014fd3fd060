package reread

import "log/slog"

// Audit has the log tell that an operator changed a file, and what became of it: with an error
// the program goes on with what it had.
func Audit(log *slog.Logger, act, file string, err error, fields ...any) {
	log = log.With(fields...)
	if err != nil {
		log.Warn("a changed file cannot be used", "event", "audit", "act", act, "target", file, "who", "file", "remote", "", "result", "refused", "error", err)
		return
	}
	log.Info("a file was read", "event", "audit", "act", act, "target", file, "who", "file", "remote", "", "result", "ok")
}
