"""List every public name of SOLLOL 0.9.66 with its fate, for imports, tests and the documentation.

A row is for names of one module with one fate. "here": the name works. "later": it can be imported, and raises
NotSupported where the absent part itself is used. "gone": importing it raises FormerName, with what to use.
"""

from __future__ import annotations

from typing import Final, NamedTuple

HERE, LATER, GONE = "here", "later", "gone"
GUIDE: Final = "docs/migration.md"


class FormerRow(NamedTuple):
    """Names of one former module. `home`: the module that has them now; `ours`: what to use in new programs."""

    module: str
    names: tuple[str, ...]
    fate: str
    ours: str
    note: str
    home: str


def _row(module: str, names: str, fate: str, ours: str, note: str, home: str) -> FormerRow:
    return FormerRow(module, tuple(names.split()), fate, ours, note, home or f"sollol.compat.{module}")


def here(module: str, names: str, ours: str, note: str, home: str = "") -> FormerRow:
    """Return a row of names that work."""
    return _row(module, names, HERE, ours, note, home)


def later(module: str, names: str, ours: str, note: str, home: str = "") -> FormerRow:
    """Return a row of names whose capability is still absent."""
    return _row(module, names, LATER, ours, note, home)


def gone(module: str, names: str, ours: str, note: str) -> FormerRow:
    """Return a row of names that are no more."""
    return _row(module, names, GONE, ours, note, "")


_SHARDS = "one model over several machines (llama.cpp RPC) is not part of SOLLOL yet"
_POOL = "`OllamaPool`"

ROWS: Final[tuple[FormerRow, ...]] = (
    # --- pools and clients ---
    here("pool", "OllamaPool", _POOL, "exact batches, failover within a call, predictions with reasons", "sollol.pool.sync"),
    here("pool", "get_pool", "`OllamaPool.auto_configure()`", "the pool of the process; an explicit one can be closed", "sollol.compat.pool"),
    here("client", "SOLLOLClient connect", "any client of Ollama, OpenAI or Anthropic, at the address of `sollol serve`", "streams, tools and images, which this client never had"),
    here("client", "SOLLOLConfig", "keyword arguments", "`base_url` is the address of `sollol serve`"),
    here("client", "Ollama", _POOL, "`chat` returned a text; a pool's answer has its routing, too"),
    here("sollol", "SOLLOL", "`sollol serve`", "a gateway in a thread of the program; the command can be supervised"),
    here("config", "SOLLOLConfig", "the settings of configuration.md", "values are checked; those of Ray, Dask and InfluxDB have no effect", "sollol.compat.app_config"),
    here("sync_wrapper", "OllamaPool", _POOL, "which is synchronous itself", "sollol.pool.sync"),
    here("sync_wrapper", "AsyncEventLoop get_event_loop sync_wrapper", _POOL, "one background loop for coroutines of your own"),
    later("sync_wrapper", "HybridRouter", _POOL, f"ordinary models go to the pool; {_SHARDS}"),
    # --- priorities and tasks ---
    here("prioritization", "PRIORITY_CRITICAL PRIORITY_HIGH PRIORITY_NORMAL PRIORITY_LOW PRIORITY_BATCH", "`TaskPriority`, or a number from 0 to 10", "one scale for pools, batches and the gateway"),
    here("prioritization", "PriorityQueue PrioritizedTask get_priority_queue", "`priority=` of a call", "the pool queues itself, fair between applications, and no priority starves"),
    here("prioritization", "get_priority_for_task_type", "`priority=` of a call", "a table of words"),
    here("priority_helpers", "Priority PriorityMapper", "`TaskPriority`", "names for the same scale"),
    here("priority_helpers", "AGENT_ROLE_PRIORITIES TASK_TYPE_PRIORITIES get_priority_for_role get_priority_for_task register_role_priority register_task_priority list_available_roles list_available_tasks explain_priority_system", "a dict of your own", "tables of words for priorities"),
    here("tasks", "DistributedTask TaskResult ExecutionResult", "`pool.batch_chat`, `pool.batch_generate`", "results in order, an error an item"),
    here("execution", "DistributedExecutor AsyncDistributedExecutor", "`pool.batch_chat`, `pool.batch_generate`", "which choose the node when a slot is free, not before"),
    here("aggregation", "ResultAggregator", "a line of your own", "merges results: collect, merge, vote, best"),
    here("integration", "SOLLOLLoadBalancer RoutingDecision", _POOL, "for requests that a program sends itself; a pool retries within the call"),
    gone("integration", "NodeProtocol NodeRegistryProtocol", _POOL, "any object with `get_healthy_nodes()` is taken as a registry"),
    # --- routing ---
    here("intelligence", "IntelligentRouter TaskContext", "[compat.md](compat.md#sollolintelligence), or `pool.chat(task_type=...)`", "predicted completion time instead of weights"),
    here("intelligence", "get_router MIN_VRAM_THRESHOLD_MB", "`IntelligentRouter(pool)`", "the router of the process"),
    here("routing_modes", "RoutingMode TaskPriority", "the same names, from `sollol`", "modes are for each call, each block or each pool", "sollol.routing_modes"),
    gone("routing_modes", "NodeStats NodeReliabilityTracker", "`pool.get_stats()[\"node_performance\"]`", "the pool counts by node itself"),
    gone("routing_modes", "RoutingDecision get_routing_reason", "`answer.routing`", "every answer has its node, candidates and predictions"),
    gone("routing_modes", "MODEL_SIZE_ESTIMATES estimate_model_vram_gb can_model_fit_on_node", "`pool.list()`, `sollol models`", "sizes are read from the nodes, not from a table"),
    here("routing_strategy", "RoutingStrategy", "the same name, from `sollol`", "`intelligent` is the default", "sollol.routing_strategy"),
    here("routing_logger", "RoutingEventLogger get_routing_logger enable_console_routing_log get_instance_id", "`sollol serve --access-log`, `pool.explain(id)`", "events of routing as lines of a log, and in a Redis"),
    gone("routing_viewer", "RoutingViewer Colors main", "`sollol top`, the dashboard", "live, with the reasons of each decision"),
    here("hedging", "AdaptiveHedging HedgingStrategy HedgeResult", "`pool.chat(hedge=True)`", "a second attempt is sent when the first is late, for 5 % of the calls at most"),
    here("hedging", "create_hedge_request_wrapper hedge_embed_request hedge_chat_request", "`pool.embed(hedge=True)`", "races of plain HTTP requests"),
    gone("hedging_async", "AsyncHedgingStrategy AsyncHedgeResult", "`HedgingStrategy.hedge_request_async`", "one class for threads and coroutines"),
    here("adaptive_parallelism", "AdaptiveParallelismStrategy integrate_with_pool print_parallelism_report", "`pool.embed_batch`, `pool.should_use_parallel_execution`", "a batch sizes its chunks by measured time; there is nothing to set"),
    here("adapters", "MetricsCollector PerformanceMemory", "`pool.get_stats()`, `/metrics`", "medians and p95 of a program's own requests"),
    # --- nodes and GPUs ---
    here("discovery", "discover_ollama_nodes", "the same name, from `sollol`", "a /24 in 0.3 s, each machine once", "sollol.discovery"),
    here("docker_ip_resolver", "DOCKER_IP_RANGES is_docker_ip is_running_in_docker get_docker_network_mode get_deployment_context resolve_docker_ip resolve_docker_ip_with_alternatives auto_resolve_ips resolve_docker_nodes", "`discover_ollama_nodes`", "which looks from inside of containers, too"),
    here("registry", "NodeRegistry", _POOL, "nodes are probed in the background, not at each call"),
    here("ollama_node", "OllamaNode NodeCapabilities NodeMetrics", "`pool.nodes`", "what the node itself reports"),
    here("node_cluster", "needs_partitioning", "`sollol models`", "by the size in the name of a model"),
    later("node_cluster", "NodeCluster LayerPartitioner LayerPartition ModelSpec MODEL_SPECS", _POOL, _SHARDS),
    here("gpu_controller", "SOLLOLGPUController ModelPlacement integrate_with_router", "[compat.md](compat.md#sollolgpu_controller)", "success is what the node reports afterwards"),
    here("intelligent_gpu_router", "IntelligentGPURouter", "`pool.chat(requires_gpu=True)`, `SOLLOLGPUController`", "sizes and memory as the nodes report them"),
    here("vram_monitor", "VRAMMonitor monitor_distributed_nodes", "`pool.ps()`, the dashboard", "memory in use as the nodes report it; no estimate of the free memory"),
    gone("model_sizes", "CACHE_FILE MODEL_SIZE_DB query_ollama_model_size get_model_size estimate_model_size can_fit_in_vram add_model_size discover_model_sizes_from_nodes get_database_stats print_model_database", "`pool.list()`, `sollol models`", "sizes are read from the nodes, not from a table"),
    gone("node_health", "VRAM_EXHAUSTION_THRESHOLD_MS GPU_HEALTHY_LATENCY_MS CPU_FALLBACK_LATENCY_MS NodeHealthMonitor estimate_gpu_capability should_force_cpu MODEL_SIZE_ESTIMATES estimate_model_size_mb can_model_fit_vram", "`pool.get_stats()`, `SOLLOLGPUController`", "a model's place is read from `/api/ps`, not from latencies"),
    gone("node_health", "normalize_model_name", "`sollol.core.types.canonical_model`", "adds the tag `:latest`"),
    gone("gpu_auto_setup", "GPUAutoSetup auto_setup_gpu_monitoring", "nothing", "no reporter on the nodes is needed: Ollama reports the memory of its models"),
    gone("gpu_redis_subscriber", "GPURedisSubscriber", "nothing", "no reporter on the nodes is needed: Ollama reports the memory of its models"),
    # --- dashboards and observation ---
    here("unified_dashboard", "UnifiedDashboard run_unified_dashboard", "the same names, from `sollol`; `sollol dashboard`", "reads the pool itself; no Redis, Ray or Dask", "sollol.dashboard"),
    gone("unified_dashboard", "QueueLogHandler log_queue UNIFIED_DASHBOARD_HTML", "`run_unified_dashboard`", "parts of a page that is another one now"),
    here("dashboard_client", "DashboardClient", "`OllamaPool(app_name=...)`, `SOLLOL_REDIS_URL`", "a pool that shares a Redis appears by itself, with its rates"),
    here("dashboard_launcher", "DashboardProcessLauncher launch_dashboard_subprocess", "`sollol dashboard`", "a process of its own"),
    here("dashboard_service", "DashboardService RedisLogPublisher install_redis_log_publisher REDIS_LOG_CHANNEL REDIS_LOG_STREAM", "`sollol dashboard`", "lines of a log in a Redis are for programs of your own"),
    gone("dashboard_service", "ActivityMonitor REDIS_OLLAMA_ACTIVITY_CHANNEL REDIS_RPC_ACTIVITY_CHANNEL REDIS_METRICS_CHANNEL REDIS_ACTIVITY_STREAM", "`SOLLOL_REDIS_URL`", "applications publish their requests and rates by themselves"),
    here("dashboard_log_hooks", "install_log_hook_main auto_install_hooks", "`install_redis_log_publisher`", "the same handler", "sollol.compat.dashboard_service"),
    gone("dashboard_log_hooks", "install_log_hook_dask", "`install_redis_log_publisher`", "there are no Dask workers"),
    gone("dashboard", "app sockets registry load_balancer LogHandler index dashboard_data detailed_stats health routing_decisions clients log_socket run_dashboard", "`run_unified_dashboard`", "one dashboard instead of two"),
    here("network_observer", "NetworkObserver NetworkEvent EventType get_observer log_ollama_request log_ollama_response log_ollama_error", "[compat.md](compat.md#sollolnetwork_observer)", "reads what the pools do; nothing has to be logged by hand", "sollol.network_observer"),
    here("network_observer", "log_rpc_request log_rpc_response log_rpc_error log_node_health_check log_node_status_change", "`NetworkObserver.log_event`", "events of a program's own", "sollol.compat.network_observer"),
    here("distributed_tracing", "DistributedTracer Span get_tracer current_trace_id current_span_id", "the OpenTelemetry of your program, `pool.explain(id)`", "spans in the memory of this process"),
    gone("adaptive_metrics", "fetch_host_system_metrics update_host_from_system_metrics adaptive_metrics_loop fetch_prometheus_node_metrics", "`/metrics` of `sollol serve`", "rates are measured by the calls themselves"),
    gone("metrics", "init_host_stats record_request_decorator record_request record_host_request get_host_stats get_all_host_stats start_metrics_server collect_system_metrics_loop", "`pool.get_stats()`, `/metrics` of `sollol serve`", "the pool counts itself"),
    gone("metrics_logger", "is_enabled log_metric log_node_health log_rpc_backend_health log_request log_routing_decision query_metrics get_node_latency_avg get_success_rate close", "`/metrics` of `sollol serve`, `pool.use_store()`", "Prometheus and a file of SQLite instead of InfluxDB"),
    # --- later ---
    here("rpc_discovery", "check_rpc_server discover_rpc_backends auto_discover_rpc_backends detect_node_resources", "the same names", "lists the workers of llama.cpp that answer on port 50052; nothing is sent to them"),
    here("rpc_registry", "RPCBackendRegistry RPCBackend RPCMetrics", "the same names", "checks them"),
    later("hybrid_router", "HybridRouter ModelProfile MODEL_PROFILES", _POOL, f"ordinary models go to the pool; {_SHARDS}"),
    later("ray_hybrid_router", "RayHybridRouter ShardedModelPool", _POOL, f"ordinary models go to the pool; {_SHARDS}"),
    later("ray_advanced_router", "RayAdvancedRouter WarmModelPool BatchedRequest", _POOL, f"ordinary models go to the pool; {_SHARDS}"),
    later("llama_cpp_coordinator", "LlamaCppCoordinator RPCBackend start_rpc_backend", _POOL, _SHARDS),
    later("llama_cpp_rpc", "LlamaCppNode LlamaCppRPCClient LlamaCppDistributedCluster MODEL_PATH_MAP resolve_model_path REDIS_RPC_ACTIVITY_CHANNEL", _POOL, _SHARDS),
    later("coordinator_manager", "CoordinatorManager CoordinatorConfig", _POOL, _SHARDS),
    later("rpc_auto_setup", "RPCAutoSetup auto_setup_rpc_backends", "`auto_discover_rpc_backends`", f"lists workers that run already, and builds none; {_SHARDS}"),
    gone("setup_llama_cpp", "check_cmake check_llama_cpp_exists clone_llama_cpp build_llama_cpp start_rpc_server main", "the releases of llama.cpp", "SOLLOL builds no other programs"),
    gone("install_systemd_service", "install_rpc_service main", "`deploy/`", "a unit for the gateway is there"),
    gone("ollama_gguf_resolver", "OllamaGGUFResolver resolve_ollama_model", "`pool.show(model)`", "files of models stay with their nodes"),
    gone("distributed_pipeline", "LayerAssignment GGUFLayerAnalyzer GGUFSplitter LayerScheduler LlamaLayerWorker DistributedPipelineInference", _POOL, "was a study that did not run; see the rows of llama.cpp"),
    # --- the gateway and its parts ---
    here("gateway", "start_api", "`sollol serve`", "blocks, as before; keys, limits, reload and alerts come with the command", "sollol.compat.gateway"),
    gone("gateway", "SOLLOLHeadersMiddleware app startup_event chat_endpoint generate_endpoint health_check stats_endpoint batch_embed_endpoint batch_job_status_endpoint batch_job_results_endpoint batch_job_cancel_endpoint batch_jobs_list_endpoint root", "`sollol serve`", "an HTTP server of its own instead of FastAPI; a list in `/api/embed` is a batch"),
    gone("cli", "app up down status install_gpu_reporter", "`sollol serve`, `sollol nodes`", "the commands of cli.md"),
    here("cli", "main", "the command `sollol`", "other commands: cli.md", "sollol.cli"),
    gone("auth", "API_KEY_HEADER APIKey AuthManager get_auth_manager verify_api_key require_permission PERM_CHAT PERM_EMBED PERM_BATCH PERM_STATS PERM_HEALTH PERM_ADMIN", "`sollol keys`", "keys of the gateway with models, rates and budgets"),
    gone("rate_limiter", "TokenBucket SlidingWindowRateLimiter RateLimiter RateLimitExceeded", "`sollol keys`", "limits of the gateway by key; a pool learns how much each node takes"),
    gone("circuit_breaker", "CircuitState CircuitBreaker CircuitBreakerOpen", _POOL, "each node has a breaker inside of the pool"),
    gone("retry_logic", "RetryConfig retry_with_backoff async_retry_with_backoff RetryableRequest", _POOL, "a call goes to another node before the caller notices, within a budget"),
    gone("request_timeout", "RequestTimeoutError with_timeout TimeoutConfig TimeoutManager T", "`timeout=` of a call", "counts the wait in the queue, too"),
    gone("graceful_shutdown", "GracefulShutdown ShutdownInProgress GracefulShutdownMiddleware", "`sollol serve`", "which ends what runs before it stops; `pool.close()`"),
    gone("response_cache", "ResponseCache", "a cache of your program", "answers differ from call to call; a cached one hides that"),
    gone("embedding_cache", "EmbeddingCache", "a dict of your program", "`sollol embed` keeps vectors in its index"),
    gone("batch_manager", "BatchJobStatus BatchJob BatchJobManager", "`pool.embed_batch`, `pool.batch_chat`", "a batch is one call; `report` has what a job had"),
    # --- Ray and Dask ---
    gone("autobatch", "autobatch_loop manual_batch_job", "`pool.embed_batch`", "no workers of Dask are needed"),
    gone("batch", "remote_embed remote_chat embed_documents run_batch_pipeline", "`pool.embed_batch`, `pool.batch_chat`", "no workers of Dask are needed"),
    gone("cluster", "start_ray start_dask", _POOL, "one process is enough: it waits for nodes, and computes nothing"),
    gone("workers", "OllamaWorker", _POOL, "one process is enough: it waits for nodes, and computes nothing"),
    gone("serve", "HEALTH_CHECK_INTERVAL_S BENCHMARK_TIMEOUT_S OllamaProxy", "`sollol serve`", "without Ray Serve"),
    gone("memory", "HOSTS_FILE HOSTS_META load_hosts_from_file init_hosts_meta get_hosts get_all_hosts_meta get_best_host update_host_metrics mark_host_unavailable mark_host_available health_check_host health_check_all_hosts fetch_new_docs queue_document", _POOL, "nodes and their measures belong to a pool, not to a module"),
    gone("distributed_coordinator", "InstanceInfo NodeState RedisCoordinator LocalCoordinator create_coordinator", "`SOLLOL_REDIS_URL`", "applications see each other; each measures the nodes itself"),
)  # fmt: skip

# Names of the package itself -> the module above that has them; "module.name" where it has another name there.
ROOT: Final[dict[str, str]] = {
    **dict.fromkeys(["OllamaPool", "get_pool"], "pool"),
    **dict.fromkeys(["SOLLOLClient", "Ollama", "connect"], "client"),
    **dict.fromkeys(["UnifiedDashboard", "run_unified_dashboard"], "unified_dashboard"),
    **dict.fromkeys(["DistributedTracer", "get_tracer"], "distributed_tracing"),
    **dict.fromkeys(["NetworkObserver", "get_observer"], "network_observer"),
    **dict.fromkeys(["DistributedExecutor", "AsyncDistributedExecutor"], "execution"),
    **dict.fromkeys(["DistributedTask", "TaskResult", "ExecutionResult"], "tasks"),
    **dict.fromkeys(["auto_discover_rpc_backends", "check_rpc_server"], "rpc_discovery"),
    **dict.fromkeys(["auto_setup_rpc_backends", "RPCAutoSetup"], "rpc_auto_setup"),
    **dict.fromkeys(["LlamaCppRPCClient", "LlamaCppDistributedCluster"], "llama_cpp_rpc"),
    **dict.fromkeys(["GPUAutoSetup", "auto_setup_gpu_monitoring"], "gpu_auto_setup"),
    **dict.fromkeys(
        ["log_metric", "log_node_health", "log_rpc_backend_health", "log_request", "log_routing_decision", "query_metrics"],
        "metrics_logger",
    ),
    **dict.fromkeys(
        [
            "is_docker_ip", "resolve_docker_ip", "resolve_docker_ip_with_alternatives", "auto_resolve_ips",
            "is_running_in_docker", "get_docker_network_mode", "get_deployment_context",
        ],
        "docker_ip_resolver",
    ),
    "metrics_enabled": "metrics_logger.is_enabled",
    "SOLLOL": "sollol",
    "SOLLOLConfig": "config",
    "HybridRouter": "hybrid_router",
    "RayHybridRouter": "ray_hybrid_router",
    "RayAdvancedRouter": "ray_advanced_router",
    "LlamaCppCoordinator": "llama_cpp_coordinator",
    "DashboardClient": "dashboard_client",
    "discover_ollama_nodes": "discovery",
    "RPCBackendRegistry": "rpc_registry",
    "AdaptiveParallelismStrategy": "adaptive_parallelism",
    "GPURedisSubscriber": "gpu_redis_subscriber",
}  # fmt: skip

_BY_NAME: Final = {(row.module, name): row for row in ROWS for name in row.names}
MODULES: Final = frozenset(row.module for row in ROWS)


def find(module: str, name: str) -> FormerRow | None:
    """Return the row of a name, None for a name that 0.9.66 did not have. `module` "": the package itself."""
    if not module:
        place = ROOT.get(name)
        if place is None:
            return None
        module, _, renamed = place.partition(".")
        name = renamed or name
    return _BY_NAME.get((module, name))


def advice(row: FormerRow, name: str) -> str:
    """Return a sentence on a name that is absent: why, and what to use."""
    where = f"sollol.{row.module}.{name}"
    return f"{where} of SOLLOL 0.9 is {'gone' if row.fate == GONE else row.fate}: {row.note}; use {row.ours} ({GUIDE})"
