package check

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// prometheusConfig is what prometheus.yml uses of Prometheus's own.
type prometheusConfig struct {
	Global struct {
		ScrapeInterval string `json:"scrape_interval"`
		ScrapeTimeout  string `json:"scrape_timeout"`
	} `json:"global"`
	RuleFiles     []string `json:"rule_files"`
	ScrapeConfigs []struct {
		JobName       string `json:"job_name"`
		MetricsPath   string `json:"metrics_path"`
		Authorization struct {
			CredentialsFile string `json:"credentials_file"`
		} `json:"authorization"`
		StaticConfigs []struct {
			Targets []string `json:"targets"`
		} `json:"static_configs"`
	} `json:"scrape_configs"`
}

// checkPrometheus compares what is scraped with the programs of the project: all of them,
// where they really answer.
func checkPrometheus(t *testing.T, p *types.Project) {
	t.Helper()
	var c prometheusConfig
	if err := yaml.UnmarshalStrict([]byte(deployFile(t, "prometheus/prometheus.yml")), &c); err != nil {
		t.Fatal(err)
	}
	interval, err := time.ParseDuration(c.Global.ScrapeInterval)
	timeout, err2 := time.ParseDuration(c.Global.ScrapeTimeout)
	if err != nil || err2 != nil || timeout >= interval {
		t.Errorf("%+v", c.Global)
	}
	for _, f := range c.RuleFiles { // beside it; what they say is checked in internal/arch
		deployFile(t, "prometheus/"+f)
	}
	if len(c.RuleFiles) == 0 {
		t.Error("no rules")
	}
	running := both(t)
	var want, have []string
	for name, s := range p.Services {
		if len(s.Command) > 0 {
			if prog := programs[strings.TrimPrefix(s.Command[0], "/")]; prog != nil {
				want = append(want, fmt.Sprintf("dialring-%s %s:%s", strings.TrimPrefix(prog.name, "ws"), name, prog.port(t, composeSettings(&s), "DIALRING_ADMIN_LISTEN")))
			}
		}
	}
	for _, job := range c.ScrapeConfigs {
		// The file is the secret that the programs have.
		checkComposeSecret(t, p, ptr(p.Services["prometheus"]), job.Authorization.CredentialsFile)
		prog := map[string]string{"dialring-locator": "locator", "dialring-node": "wsnode"}[job.JobName]
		if status, _ := get(t, running[prog]["DIALRING_ADMIN_LISTEN"], job.MetricsPath); status != 401 {
			t.Errorf("%s: %s answers %d without the key", job.JobName, job.MetricsPath, status)
		}
		if status, body := get(t, running[prog]["DIALRING_ADMIN_LISTEN"], job.MetricsPath, "Authorization", "Bearer "+adminKey); status != 200 || !strings.Contains(body, "\ndialring_") {
			t.Errorf("%s: %s answers %d", job.JobName, job.MetricsPath, status)
		}
		for _, s := range job.StaticConfigs {
			for _, x := range s.Targets {
				have = append(have, job.JobName+" "+x)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		t.Errorf("scraped are %v, there are %v", have, want)
	}
}

var update = flag.Bool("update", false, "write the PrometheusRule anew")

// prometheusRule is what these files use of the Prometheus operator's type.
type prometheusRule struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []struct {
				Alert       string            `json:"alert"`
				Expr        string            `json:"expr"`
				For         string            `json:"for"`
				Labels      map[string]string `json:"labels"`
				Annotations map[string]string `json:"annotations"`
			} `json:"rules"`
		} `json:"groups"`
	} `json:"spec"`
}

// The component for Kubernetes says what alerts.yml says, and its jobs are what the monitors make.
func TestPrometheusRule(t *testing.T) {
	const file = "../kubernetes/components/prometheusrule/prometheusrule.yaml"
	alerts := deployFile(t, "prometheus/alerts.yml")
	at := strings.Index(alerts, "\ngroups:\n")
	if at < 0 {
		t.Fatal("alerts.yml has no groups")
	}
	want := "# Made of deploy/prometheus/alerts.yml; see kustomization.yaml.\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: dialring\nspec:\n"
	for line := range strings.Lines(alerts[at+1:]) {
		want += "  " + line
	}
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have := deployFile(t, strings.TrimPrefix(file, "../")); have != want {
		t.Error("the PrometheusRule is not alerts.yml: go test -run TestPrometheusRule . -update")
	}
	o := build(t, "production")
	rules := of[*prometheusRule](o)
	if len(rules) != 1 || len(rules[0].Spec.Groups) != 1 || len(rules[0].Spec.Groups[0].Rules) != strings.Count(alerts, "- alert: ") {
		t.Fatalf("production has the rules %+v", rules)
	}
	jobs := regexp.MustCompile(`job=~"([^"]*)"`).FindAllStringSubmatch(alerts, -1)
	if len(jobs) == 0 {
		t.Error("no alert asks for a job")
	}
	for _, m := range of[*podMonitor](o) {
		for _, w := range o.workloads() {
			for _, j := range jobs {
				if job := w.template.Labels[m.Spec.JobLabel]; !regexp.MustCompile("^(?:" + j[1] + ")$").MatchString(job) {
					t.Errorf("alerts look for the job %s, and that of %s is %q", j[1], w.name, job)
				}
			}
		}
	}
}
