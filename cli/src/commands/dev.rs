//! `intermezzo dev`: a local fleet.

use anyhow::Result;
use serde::Serialize;

use crate::Exit;
use crate::admin::Looking;
use crate::args::{Dev, DevNodeArgs, DevStatusArgs, UpArgs};
use crate::fleet::{Daemon, Fleet, HistorySpec, Mounts, Node, Request, mounts};
use crate::output::{Format, Table, print_text, print_value, say};
use crate::progress::Progress;

pub(super) fn run(dev: Dev) -> Result<Exit> {
    match dev {
        Dev::Up(args) => up(args),
        Dev::Down(args) => {
            let progress = Progress::spinner("Ending the fleet");
            let done = Fleet::open(&args.dir)?.down(&mut |text| progress.note(text));
            progress.finish();
            done?;
            say("The fleet is down; its data stays.");
            Ok(Exit::Done)
        }
        Dev::Pause(args) => set_paused(&args, true),
        Dev::Resume(args) => set_paused(&args, false),
        Dev::Status(args) => status(&args),
    }
}

fn set_paused(args: &DevNodeArgs, paused: bool) -> Result<Exit> {
    let fleet = Fleet::open(&args.at.dir)?;
    fleet.set_paused(fleet.node(&args.node)?, paused)?;
    let what = if paused { "is paused: what is written there stays there for now" } else { "goes on" };
    say(format_args!("The Replicator on node {} {what}.", args.node));
    Ok(Exit::Done)
}

fn up(args: UpArgs) -> Result<Exit> {
    let request = Request {
        nodes: args.nodes,
        volume: args.volume,
        lower: args.lower,
        adopt: args.adopt,
        mounts: Mounts::OutlivePresto,
    };
    let mut fleet = Fleet::make(&args.at.dir, &request)?;
    if args.history {
        fleet.set_history(Some(HistorySpec::default()))?;
    }
    let progress = Progress::spinner("Starting the fleet");
    let ready = fleet.up(args.timeout, &mut |text| progress.note(text));
    let took = progress.finish();
    ready?;
    say(format_args!("Ready after {:.1} s.", took.as_secs_f64()));
    if let (Some(source), Some(server)) = (&fleet.config.adopt, fleet.config.nodes.first()) {
        let title = format!("Adopting {}", source.display());
        let socket = fleet.layout.admin_socket(server);
        let end = super::scrub::follow(&socket, &fleet.config.volume, Looking::Follow, &title)?;
        if end.adopting {
            say(format_args!("{} is adopted: {} names.", source.display(), end.looked));
        }
    }
    let mut table = Table::new(&["NODE", "ROLE", "VOLUME", "MOUNTED AT"]);
    for node in &fleet.config.nodes {
        let mountpoint = fleet.mountpoint(node).display().to_string();
        table.row([node.name.clone(), role(&fleet, node).into(), fleet.config.volume.clone(), mountpoint]);
    }
    print_text(&table.render())?;
    Ok(Exit::Done)
}

fn role(fleet: &Fleet, node: &Node) -> &'static str {
    if fleet.config.is_server(node) { "server" } else { "client" }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeView {
    node: String,
    role: &'static str,
    presto: Option<i32>,
    lento: Option<i32>,
    holder: Option<i32>,
    mountpoint: String,
    mounted: bool,
    address: String,
    metrics: String,
    admin_socket: String,
}

fn status(args: &DevStatusArgs) -> Result<Exit> {
    let fleet = Fleet::open(&args.at.dir)?;
    let views: Vec<NodeView> = fleet.config.nodes.iter().map(|node| view(&fleet, node)).collect();
    if args.print.output.is_table() {
        let wide = args.print.output == Format::Wide;
        let mut header = vec!["NODE", "ROLE", "PRESTO", "LENTO", "MOUNTED", "AT"];
        if wide {
            header.extend(["HOLDER", "ADDRESS", "METRICS"]);
        }
        let mut table = Table::new(&header);
        let process = |pid: Option<i32>| pid.map_or("down".to_owned(), |pid| pid.to_string());
        for view in &views {
            let mounted = if view.mounted { "yes" } else { "no" };
            let (presto, lento, holder) = (process(view.presto), process(view.lento), process(view.holder));
            let mut cells = vec![&view.node, view.role, &presto, &lento, mounted, &view.mountpoint];
            if wide {
                cells.extend([holder.as_str(), &view.address, &view.metrics]);
            }
            table.row(cells.into_iter().map(str::to_owned));
        }
        print_text(&table.render())?;
    } else {
        print_value(args.print.output, &views)?;
    }
    let all = views.iter().all(|view| view.presto.is_some() && view.lento.is_some() && view.mounted);
    Ok(if all { Exit::Done } else { Exit::NotTrue })
}

fn view(fleet: &Fleet, node: &Node) -> NodeView {
    let pid = |daemon| fleet.running(node, daemon).map(|process| process.pid);
    let mountpoint = fleet.mountpoint(node);
    NodeView {
        node: node.name.clone(),
        role: role(fleet, node),
        presto: pid(Daemon::Presto),
        lento: pid(Daemon::Lento),
        holder: pid(Daemon::Holder),
        mounted: mounts::is_mounted(&mountpoint),
        mountpoint: mountpoint.display().to_string(),
        address: format!("127.0.0.1:{}", node.port),
        metrics: node.metrics().map(|address| format!("http://{address}/metrics")).unwrap_or_default(),
        admin_socket: fleet.layout.admin_socket(node).display().to_string(),
    }
}
