package httpd

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// AdminOptions are what an admin listener serves.
type AdminOptions struct {
	Addr    net.Addr // where it listens
	Key     string   // "": none, and then only loopback gets more than health
	Ready   func() error
	Metrics *prometheus.Registry
	Log     *slog.Logger
	// Pages and API are the dashboard; nil where there is none. Pages are for anyone who may
	// ask for a key, and hold no secret; what they show comes from API, under AdminAPI.
	Pages, API http.Handler
}

// AdminAPI is where the API of the dashboard begins.
const AdminAPI = "/admin/v1/"

// Admin is the handler of an admin listener: health for everybody, and metrics, profiles and
// the dashboard for those whom access lets in.
func Admin(o AdminOptions) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", Healthz)
	mux.HandleFunc("GET /readyz", Readyz(o.Ready))

	a := newAccess(o.Addr, o.Key, o.Log)
	mux.Handle("GET /metrics", a.guard(promhttp.HandlerFor(o.Metrics, promhttp.HandlerOpts{})))
	for path, h := range map[string]http.HandlerFunc{"": pprof.Index, "profile": pprof.Profile, "symbol": pprof.Symbol, "trace": pprof.Trace} {
		mux.Handle("GET /debug/pprof/"+path, a.guard(a.profiled(h)))
	}
	if o.Pages != nil {
		mux.Handle("/", a.pages(o.Pages))
		mux.Handle(AdminAPI, a.guard(o.API))
		mux.HandleFunc("POST /admin/login", a.login)
		mux.HandleFunc("POST /admin/logout", a.logout)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		guarded(w.Header())
		if _, pattern := mux.Handler(r); pattern == "" && r.ContentLength != 0 { // nobody takes the body
			hurry(w)
		}
		mux.ServeHTTP(w, r)
	})
}

// profiled logs who takes a profile: it costs the process something, and shows how it works.
func (a *access) profiled(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.log.Info("a profile is taken", "event", "audit", "act", "profile", "target", Cut(r.URL.Path), "who", AdminCallerOf(r.Context()).Whole(), "remote", r.RemoteAddr, "result", "ok")
		h.ServeHTTP(w, r)
	})
}

// Healthz answers that the process is alive.
func Healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	fmt.Fprintln(w, "ok")
}

// Readyz answers whether the process can do its work now, and if not, why.
func Readyz(ready func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if err := ready(); err != nil {
			w.Header().Set("Retry-After", "1")
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	}
}
